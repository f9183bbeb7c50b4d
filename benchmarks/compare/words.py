"""What the report of a comparison says in sentences: the conditions of its figures, the captions of its pictures."""

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.compare.methods import Comparison
from benchmarks.compare.summary import Result, Summary
from harness.sidecar import describe_device
from inference.config import VAE_TEMPORAL_FACTOR, MagiConfig


def machine(device: torch.device) -> dict[str, Any]:
    """Where it ran."""
    return describe_device(device) | {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def processor() -> str:
    """The processor's name where the system tells it, otherwise its architecture."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def conditions(
    comparison: Comparison, config: MagiConfig, device: torch.device, command: str, results: Sequence[Result]
) -> list[str]:
    """What was measured, on what, how."""
    runtime, place = config.runtime, machine(device)
    on = place["name"] if device.type == "cuda" else f"{place['processor']} (CPU threads used: {place['threads']})"
    chunks = -(-runtime.num_frames // (VAE_TEMPORAL_FACTOR * runtime.chunk_width))
    processes = len({result.session for result in results})
    commits = ", ".join(sorted({str(result.commit) for result in results}))
    return [
        f"Model: {comparison.config_file}; {runtime.num_frames} frames of {runtime.video_size_w}x{runtime.video_size_h}"
        f" in {chunks} chunks, {runtime.num_steps} steps unless a row says otherwise.",
        f"Samples: prompts {comparison.prompts}, of the held-out set “{comparison.held_out_set}”; seeds of each "
        f"{comparison.seeds}. Every method starts from the same noise.",
        "Baseline: the uncached video of the same prompt, noise and key window, in all steps, for methods that take "
        "fewer steps too. PSNR, SSIM and LPIPS compare the frames themselves, before they are encoded as a file.",
        "Passes: the clean pass and the nearly-clean copy are kept unless a row says otherwise. Nothing is offloaded: "
        "weights and cache stay on the device.",
        f"Machine: {on}, {place['cores']} cores, {place['system']}, torch {place['torch']}. Methods took turns, sample "
        f"by sample; processes: {processes}. Seconds are of denoising alone, ratios pair by pair.",
        f"Command: {command}; code: {commits}; date: {time.strftime('%Y-%m-%d')}.",
    ]


def in_short(table: Sequence[Summary]) -> str:
    judged = sum(row.reference is not None for row in table)
    return (
        f"{judged} ways to make a video with less work, each compared with the video that takes all of it. What is "
        "saved is shown as counted operations and as seconds; what is lost as the difference of the pictures, and as "
        "whether the video still shows what its caption says."
    )


def captions(first_prompt: str) -> dict[str, str]:
    return {
        "pareto": (
            "Each point is a method, each line a family. Higher is closer to the uncached video, further right is "
            "cheaper. Methods of another key window are in the tables alone. Vertical bars are one standard deviation "
            "over the samples. Operations are counted and the same everywhere; seconds are this machine's, and a small "
            "model spends many of them outside of what is counted."
        ),
        "video": f"The first sample, not a chosen one: “{first_prompt}”.",
        "table": (
            "Tables go on to the right where the screen is narrow. Computed and FLOP are relative to the reference. "
            "Seconds are the median over the samples; how many times "
            "faster is the median of the pairs, with the lowest and the highest. PSNR is of the mean squared error "
            "over all frames of a video: mean over the samples ± their standard deviation, and beside it the 5th "
            "percentile and the lowest, which a mean hides. “Task: all right” counts "
            "the videos that show the background, colours, shapes and motion of their caption, with the 95 % interval "
            "of that share; the last column says how many became wrong and right against the same sample uncached."
        ),
        "changes": (
            "The measure that FlowCache and TeaCache decide by, recorded on an uncached video: the mean absolute "
            "change of a chunk's embedded latents since the step before, relative to their mean size. Above by the "
            "steps of the video, where chunks at different noise levels differ; below by each chunk's own. Prompt: "
            f"“{first_prompt}”."
        ),
        "maps": (
            "Of the first sample. Rows are chunks from the first to the last, columns the steps of the video; where "
            "there is no colour a chunk is not in the window."
        ),
    }
