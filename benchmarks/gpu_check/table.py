"""The GPU check's results as a table to read (docs/gpu_check.md, "How to read it")."""

from collections.abc import Iterator
from typing import Any

# The published run: 10 s of 720 x 720, every chunk computed at every one of 64 steps, and seconds on an A800-class GPU
# (docs/flowcache.md, "Published results to compare with").
PUBLISHED_SIDE, PUBLISHED_CHUNKS, PUBLISHED_STEPS = 720, 10, 64
PUBLISHED_SECONDS = {"none": 2873, "slow": 1546, "fast": 1209}
WAYS = ("dequantise", "scaled_mm_operators", "scaled_mm")
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
    for layout, found in results.get("attention_layouts", {}).items():
        yield f"attention, {layout.replace('_', ' ')}", f"{found['tflops']:.4g} TFLOP/s"
    yield from variant_rows(results.get("variants", {}))
    for name, found in results.get("fp8_layers", {}).items():
        if isinstance(found, dict):
            ratios = (f"{way} {found['bfloat16'] / found[way]:.2f}x" for way in WAYS if way in found)
            yield f"fp8 layer, {name}", f"{', '.join(ratios)} as fast as in bfloat16"
    yield from run_rows(results)
    for name, found in results.get("placements", {}).items():
        if isinstance(found, dict):
            others = (f"{place} {row['ratio']:.2f}x" for place, row in found.items() if place != "on_the_device")
            yield f"placements, {name}", f"{', '.join(others)} the time"
    for name, found in results.get("repeatable", {}).items():
        if isinstance(found, dict):
            yield f"run made again, {name}", f"largest difference {found['largest_difference']:.3g}"
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


def variant_rows(found: dict[str, Any]) -> Iterator[Row]:
    """The same forward with one thing changed, in times of the one that runs."""
    for name, rows in found.items():
        if isinstance(rows, dict):
            others = (f"{variant} {row['ratio']:.2f}x" for variant, row in rows.items() if variant != "as_it_is")
            yield f"variants, {name}", f"{milliseconds(rows['as_it_is']['seconds'])}; {', '.join(others)} the time"
        elif name.startswith("compilation_seconds"):
            yield f"compiled,{name.partition(',')[2]}", f"after {rows:.0f} s"


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.4g} ms"


def table(sections: dict[str, dict[str, Any]]) -> str:
    lines = list(rows(sections))
    width = max((len(name) for name, _ in lines), default=0)
    return "\n".join(f"{name:{width}s}  {value}" for name, value in lines)
