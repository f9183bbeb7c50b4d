"""Sampling runs of the tiny model: their configuration, and their samples made in this process."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml

from sampling.job import Job
from sampling.maker import SampleMaker


def write_prompts(folder: Path, stems: Iterable[str], prompts: Iterable[str]) -> None:
    """VBench's prompt files in ``folder``/prompts_per_dimension, all with the same ``prompts``."""
    target = folder / "prompts_per_dimension"
    target.mkdir(parents=True)
    for stem in stems:
        (target / f"{stem}.txt").write_text("\n".join(prompts), encoding="utf-8")


def write_run(folder: Path, checkpoint: Path, **settings: Any) -> Path:
    """The configuration ``folder``/run.yaml of a run into ``folder``/out; ``settings`` replace what is here."""
    defaults = {
        "benchmark": "vbench",
        "data": str(folder),
        "output": str(folder / "out"),
        "model_name": "tiny",
        "config_file": str(checkpoint / "distill.json"),
        "num_steps": 8,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(defaults | settings), encoding="utf-8")
    return path


def make_samples(job: Job) -> None:
    """All of them, undisturbed, the last first."""
    maker = SampleMaker(job, torch.device("cpu"), "undisturbed")
    for task in reversed(job.tasks):
        maker.make(task)
