"""What a run leaves beside its video: a JSON with everything needed to judge and repeat it, and the reuse map as a
picture.
"""

import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from harness.json_files import commit, write_json
from harness.methods import Method
from harness.outputs import PICTURE_MARK, report_paths
from inference.files import replacing
from inference.noise import sample_seed
from inference.pipeline import MagiPipeline, RunReport, Sample
from inference.record import RunRecord
from inference.session.times import ChunkTimes
from inference.video.writing import VideoWriter
from metrics.flops import TransformerSize, counted_flops

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PACKAGES = ("torch", "transformers", "safetensors", "av", "numpy")


def leave_report(video: Path, contents: dict[str, Any], record: RunRecord) -> None:
    """Write the sidecar and the reuse map beside ``video``; OSError where that fails, which leaves the video alone."""
    title = title_of(contents["method"]["source"], record)
    for path, kind in zip(report_paths(video), ("sidecar", "reuse map"), strict=True):
        try:
            with replacing(path) as part:
                if kind == "sidecar":
                    write_json(part, contents)
                else:
                    draw_reuse_map(part, record, title, contents["prompts"])
        except OSError as error:
            reason = error.strerror or error
            raise OSError(error.errno, f"{video} was written, but not its {kind} {path}: {reason}") from error


def title_of(source: str, record: RunRecord) -> str:
    """What stands above the reuse map of a run with the method from ``source``."""
    return f"{Path(source).stem}: {record.share_reused:.0%} reused"


def describe_run(
    pipeline: MagiPipeline,
    method: Method,
    sample: Sample,
    report: RunReport,
    writer: VideoWriter,
    times: ChunkTimes | None = None,
) -> dict[str, Any]:
    """The contents of the sidecar. ``times``: when the chunks begin, where prompts change."""
    config, device, record = pipeline.config, pipeline.device, report.record
    size = TransformerSize.of(config.model.model_dump())
    return {
        "video": None if writer.saved_as is None else writer.saved_as.name,
        "stopped": writer.stopped,
        "prompt": sample.prompt,
        "prompts": describe_prompts(report, times),
        "prefix_frames": 0 if sample.prefix is None else len(sample.prefix),
        "seed": {
            "base": config.runtime.seed,
            "sample": sample.identity,
            "noise": sample_seed(config.runtime.seed, sample.identity),
        },
        "resumed_behind_chunks": report.resumed,
        "frames": {"written": writer.frames_written, "fps": config.runtime.fps},
        "chunks": {"all": record.chunk_num, "given": record.offset},
        "method": method.to_json_dict(),
        "work": record.summary() | {"flop_estimate": counted_flops(size, record.forward_counts())},
        "kv_cache_bytes": report.kv_cache_bytes,
        "placement": pipeline.placement(),
        "memory_plan": None if pipeline.memory is None else pipeline.memory.to_json_dict(),
        "text": None if report.prompt is None else report.prompt.to_json_dict(),
        "text_from_cache": report.text_from_cache,
        "seconds": {stage: round(seconds, 3) for stage, seconds in report.seconds.items()},
        "peak_memory_bytes": peak_memory(device),
        "attention_backend": pipeline.dit.backend,
        "fp8_matmul": pipeline.dit.fp8_matmul,
        "fused_kernels": pipeline.dit.kernels is not None,
        "device": describe_device(device),
        "ranks": pipeline.parallel.describe(),
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "commit": commit(),
        "config": config.to_json_dict(full=True),
        "reuse_map": record.reuse_map(),
    }


def describe_prompts(report: RunReport, times: ChunkTimes | None) -> list[dict[str, Any]]:
    """From which chunk on, counted from the first that was made, and from which second each prompt ruled."""
    return [
        {
            "chunk": change.chunk,
            **({} if times is None else {"second": round(times.begin(change.chunk), 3)}),
            "prompt": change.prompt,
        }
        for change in report.prompts
    ]


def mark_prompts(axes: "Axes", prompts: Sequence[Mapping[str, Any]], chunks: range, offset: int) -> None:
    """A line above the first chunk of each prompt, and its beginning on the side where the window has not come yet."""
    for number, change in enumerate(prompts):
        begins = change["chunk"] + offset
        ends = prompts[number + 1]["chunk"] + offset if number + 1 < len(prompts) else chunks.stop
        if begins > chunks.start:
            axes.axhline(begins - 0.5, color="#444444", linewidth=0.8, linestyle=":")
        if chunks.start < ends and begins < chunks.stop:
            text = change["prompt"] if len(change["prompt"]) <= 60 else change["prompt"][:57] + "..."
            # Chunks enter at the right in the lower half, so the picture is empty at the other side there.
            low = 2 * (max(begins, chunks.start) - chunks.start) > len(chunks)
            axes.annotate(
                text,
                xy=(0.005 if low else 0.995, max(begins, chunks.start) - 0.4),
                xycoords=("axes fraction", "data"),
                ha="left" if low else "right",
                va="top",
                fontsize=8,
                color="#444444",
            )


def peak_memory(device: torch.device) -> dict[str, int]:
    """Peak bytes of this process, and on a GPU of its memory."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peak["device"] = torch.cuda.max_memory_allocated(device)
    return peak


def describe_device(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device), "threads": torch.get_num_threads()}
    return {"type": device.type, "name": platform.machine(), "threads": torch.get_num_threads()}


def draw_reuse_map(
    path: Path | BinaryIO, record: RunRecord, title: str, prompts: Sequence[Mapping[str, Any]] = ()
) -> None:
    """The reuse map as PNG: rows are chunks, columns steps; white not in the window, dark computed, light reused.

    Of a long video the last steps. Where there are several ``prompts``, each stands where its first chunk begins.
    """
    # With the first picture: a run should not wait for this before its first step.
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = torch.tensor(record.reuse_map()).T if record.steps else torch.full((1, 1), -1)
    colours = ["#ffffff", "#1f4e79", "#f4b183"]
    figure = Figure(figsize=(10, 0.8 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    chunks, first = record.mapped_chunks(), record.steps[0].number if record.steps else 0
    edges = (first - 0.5, first + rows.shape[1] - 0.5, chunks.start + len(rows) - 0.5, chunks.start - 0.5)
    colour_map = ListedColormap(colours)
    axes.imshow(rows.numpy(), aspect="auto", interpolation="nearest", cmap=colour_map, vmin=-1, vmax=1, extent=edges)
    compactions = [step.number for step in record.steps if step.compacted]
    axes.vlines([number + 0.5 for number in compactions], edges[3], edges[2], colors="#c00000", linewidth=1)
    if len(prompts) > 1:
        mark_prompts(axes, prompts, chunks, record.offset)
    spacing = max(1, len(rows) // 30)
    axes.set(xlabel="step", ylabel="chunk", title=title, yticks=range(chunks.start, chunks.start + len(rows), spacing))
    legend = [Patch(color=colours[1], label="computed"), Patch(color=colours[2], label="reused")]
    if compactions:
        legend.append(Patch(color="#c00000", label="cache compressed"))
    axes.legend(handles=legend, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.savefig(path, dpi=110, format="png", metadata=PICTURE_MARK)
