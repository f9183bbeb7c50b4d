"""What a run leaves beside its video: a JSON with everything needed to judge and repeat it, and the reuse map as a
picture.
"""

import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from harness.json_files import commit, write_json
from harness.methods import Method
from harness.outputs import PICTURE_MARK, report_paths
from inference.files import replacing
from inference.noise import sample_seed
from inference.pipeline import MagiPipeline, RunReport, Sample
from inference.record import RunRecord
from inference.video.writing import VideoWriter
from metrics.flops import TransformerSize, run_flops

PACKAGES = ("torch", "transformers", "safetensors", "av", "numpy")


def leave_report(video: Path, contents: dict[str, Any], record: RunRecord) -> None:
    """Write the sidecar and the reuse map beside ``video``; OSError where that fails, which leaves the video alone."""
    title = f"{Path(contents['method']['source']).stem}: {record.share_reused:.0%} reused"
    for path, kind in zip(report_paths(video), ("sidecar", "reuse map"), strict=True):
        try:
            with replacing(path) as part:
                write_json(part, contents) if kind == "sidecar" else draw_reuse_map(part, record, title)
        except OSError as error:
            reason = error.strerror or error
            raise OSError(error.errno, f"{video} was written, but not its {kind} {path}: {reason}") from error


def describe_run(
    pipeline: MagiPipeline, method: Method, sample: Sample, report: RunReport, writer: VideoWriter
) -> dict[str, Any]:
    """The contents of the sidecar."""
    config, device, record = pipeline.config, pipeline.device, report.record
    size = TransformerSize.of(config.model.model_dump())
    return {
        "video": None if writer.saved_as is None else writer.saved_as.name,
        "stopped": writer.stopped,
        "prompt": sample.prompt,
        "prefix_frames": 0 if sample.prefix is None else len(sample.prefix),
        "seed": {
            "base": config.runtime.seed,
            "sample": sample.identity,
            "noise": sample_seed(config.runtime.seed, sample.identity),
        },
        "frames": {"written": writer.frames_written, "fps": config.runtime.fps},
        "chunks": {"all": record.chunk_num, "given": record.offset},
        "method": method.to_json_dict(),
        "work": record.summary() | {"flop_estimate": run_flops(size, record.forwards)},
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


def draw_reuse_map(path: Path, record: RunRecord, title: str) -> None:
    """The reuse map as PNG: rows are chunks, columns steps; white not in the window, dark computed, light reused."""
    # With the first picture: a run should not wait for this before its first step.
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = torch.tensor(record.reuse_map()).T if record.steps else torch.full((1, 1), -1)
    colours = ["#ffffff", "#1f4e79", "#f4b183"]
    figure = Figure(figsize=(10, 0.8 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(rows.numpy(), aspect="auto", interpolation="nearest", cmap=ListedColormap(colours), vmin=-1, vmax=1)
    compactions = [step.number for step in record.steps if step.compacted]
    axes.vlines([number + 0.5 for number in compactions], -0.5, len(rows) - 0.5, colors="#c00000", linewidth=1)
    axes.set(xlabel="step", ylabel="chunk", title=title, yticks=range(len(rows)))
    legend = [Patch(color=colours[1], label="computed"), Patch(color=colours[2], label="reused")]
    if compactions:
        legend.append(Patch(color="#c00000", label="cache compressed"))
    axes.legend(handles=legend, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.savefig(path, dpi=110, format="png", metadata=PICTURE_MARK)
