"""The GPU check's results as a table to read (docs/gpu_check.md, "How to read it")."""

from collections.abc import Iterator
from typing import Any

# The published run: 10 s of 720 x 720, every chunk computed at every one of 64 steps, and seconds on an A800-class GPU
# (docs/flowcache.md, "Published results to compare with").
PUBLISHED_SIDE, PUBLISHED_CHUNKS, PUBLISHED_STEPS = 720, 10, 64
PUBLISHED_SECONDS = {"none": 2873, "slow": 1546, "fast": 1209}
Row = tuple[str, str]


def rows(sections: dict[str, dict[str, Any]]) -> Iterator[Row]:
    """What each section found, in words and numbers; nothing of one that found nothing."""
    results = {name: section.get("result", {}) for name, section in sections.items()}
    if ceiling := results.get("matmul", {}).get("tflops"):
        yield "matmul ceiling", f"{ceiling:.4g} TFLOP/s"
    for name, found in results.get("attention", {}).items():
        if isinstance(found, dict) and "self_tflops" in found:
            yield f"attention, {name}", f"{found['self_tflops']:.4g} TFLOP/s, error {found['self_error']:.1e}"
    for kernel, seconds in results.get("attention", {}).get("sdpa_kernels", {}).items():
        yield (
            f"attention, PyTorch's {kernel.lower()}",
            milliseconds(seconds) if isinstance(seconds, float) else "refused",
        )
    for size, found in results.get("forwards", {}).items():
        if isinstance(found, list):
            yield from (forward_row(size, row) for row in found)
    if found := results.get("projection"):
        yield "attention projection", f"{found['ratio']:.2f}x as fast as with factors in float32"
    for count, found in results.get("compiled", {}).get("chunks", {}).items():
        yield (
            f"compiled, {count} chunks",
            f"{found['ratio']:.2f}x faster, compiled in {found['compilation_seconds']:.0f} s",
        )
    for name in ("dequantise", "scaled_mm"):
        if seconds := results.get("fp8_layers", {}).get(f"{name}_seconds"):
            ratio = results["fp8_layers"]["bfloat16_seconds"] / seconds
            yield f"fp8 layer, {name}", f"{ratio:.2f}x as fast as in bfloat16"
    yield from run_rows(results)
    for name in ("full_history", "compressed"):
        if found := results.get("cache_memory", {}).get(name):
            yield f"KV cache, {name.replace('_', ' ')}", f"{found['kv_cache_bytes'] / 1e9:.3g} GB"
    if found := results.get("flowcache"):
        total = sum(found["compression_seconds"])
        yield "compressions", f"{len(found['compression_seconds'])}, {milliseconds(total)} in all"
    for name, found in results.get("parity", {}).items():
        yield f"parity, {name}", f"{found['missed']} of {found['quantities']} missed"
    for name, section in sections.items():
        if problem := section.get("error") or section.get("skipped"):
            yield name, problem


def forward_row(size: str, row: dict[str, Any]) -> Row:
    share = f"{row['share_of_matmul_ceiling']:.0%} of the ceiling"
    return (
        f"forward, {size}, chunks {row['chunks']}",
        f"{milliseconds(row['seconds_per_chunk_forward'])} a chunk, {share}",
    )


def run_rows(results: dict[str, dict[str, Any]]) -> Iterator[Row]:
    """Runs as made, and the published 10 s video as the longest forward here makes of it."""
    runs = results.get("runs", {})
    for name in PUBLISHED_SECONDS:
        if found := runs.get(name):
            speedup = f", {found['speedup']:.2f}x as fast" if "speedup" in found else ""
            yield f"run, {name}", f"{found['seconds']:.3g} s{speedup}"
    size = f"{PUBLISHED_SIDE}x{PUBLISHED_SIDE}"
    forwards = results.get("forwards", {}).get(size)
    if not forwards:
        return
    # Behind the whole history: an upper bound for the chunks that have less.
    each = forwards[-1]["seconds_per_chunk_forward"]
    for name, published in PUBLISHED_SECONDS.items():
        if found := runs.get(name):
            seconds = each * PUBLISHED_CHUNKS * PUBLISHED_STEPS * (1 - found["share_reused"])
            yield f"10 s of {size}, {name}", f"at most {seconds:.0f} s; published {published} s (A800)"


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.4g} ms"


def table(sections: dict[str, dict[str, Any]]) -> str:
    lines = list(rows(sections))
    width = max((len(name) for name, _ in lines), default=0)
    return "\n".join(f"{name:{width}s}  {value}" for name, value in lines)
