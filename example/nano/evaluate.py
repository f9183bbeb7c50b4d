"""Videos of held-out captions, measured: `python -m example.nano.evaluate --prompts 200`.

Runs the product's own pipeline on the exported weights, or with `--checkpoint work/dit.pt` on a training that still
runs. Writes `work/evaluation_<mode>_<set>_<frames>.json` and a contact sheet beside it: one prompt a row, two frames a
chunk. The way to judge the training: the loss says little.

Modes: `t2v` from the caption alone; `i2v` from the scene's first frame; `v2v` from 72 frames of the scene, where the
true continuation is known. Sets: `captions` are sentences that training never saw, of combinations of looks and motion
that it did see; `combinations` were never seen.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from example.nano.model import WEIGHTS, magi_config
from example.nano.scenes.data import KINDS, Scene, caption, held_out_caption, sample_scene
from example.nano.scenes.drawing import render
from example.nano.scenes.measure import Finding, is_stable, measure, position_error
from example.nano.training.common import WORK
from example.nano.training.export import export_models
from example.nano.training.latents import CHUNK_FRAMES
from inference.pipeline import MagiPipeline, Sample

_FIRST_SEED = 500_000
_PREFIX_FRAMES = {"t2v": 0, "i2v": 1, "v2v": 72}
_SETS = ("captions", "combinations")
_SHEET_ROWS, _SHEET_COLUMNS = 48, 16


@dataclass(frozen=True)
class Settings:
    """What is made: `frames` new ones a video, in `steps` denoising steps."""

    mode: str
    set: str
    frames: int
    steps: int


@dataclass(frozen=True)
class Result:
    """One prompt. `error`: mean distance of the objects from their true places in the first chunk, in picture widths,
    where the truth is known. `stable`: whether the last chunk still shows the first one's objects.
    """

    prompt: str
    kind: str
    finding: Finding
    stable: bool
    error: float | None


@cache
def load_pipeline(weights: Path, scale_factor: float, frames: int, steps: int) -> MagiPipeline:
    config = magi_config().with_overrides(
        load=str(weights / "magi"),
        t5_pretrained=str(weights / "t5"),
        vae_pretrained=str(weights / "vae"),
        special_token_path=str(weights / "special_tokens.npz"),
        scale_factor=scale_factor,
        num_frames=frames,
        num_steps=steps,
    )
    return MagiPipeline.load(config, torch.device("cpu"))


def prompt_of(number: int, held_out_set: str) -> tuple[Scene, str]:
    """The scene of a number and its caption."""
    unseen = held_out_set == "combinations"
    scene = sample_scene(np.random.default_rng([7, int(unseen), _FIRST_SEED + number]), unseen)
    rng = np.random.default_rng(number)
    return scene, caption(scene, rng) if unseen else held_out_caption(scene, rng)


def run_prompt(pipeline: MagiPipeline, settings: Settings, number: int) -> tuple[Result, np.ndarray]:
    """Make and measure one video; returns it too, (T, 64, 64, 3) uint8."""
    given = _PREFIX_FRAMES[settings.mode]
    scene, prompt = prompt_of(number, settings.set)
    prefix = torch.from_numpy(render(scene, given)) if given else None
    video = torch.cat(list(pipeline.frames(Sample(prompt, prefix, str(number))))).numpy()
    error = None
    if settings.mode == "v2v":
        truth = render(scene, CHUNK_FRAMES, first_frame=given)
        error = position_error(video[:CHUNK_FRAMES], truth, scene)
    return Result(prompt, scene.kind, measure(video, scene), is_stable(video, scene), error), video


def _work(job: tuple[Path, float, Settings, int]) -> tuple[Result, np.ndarray]:
    """For worker processes: the result, and the row of the contact sheet."""
    torch.set_num_threads(1)
    weights, scale_factor, settings, number = job
    pipeline = load_pipeline(weights, scale_factor, settings.frames, settings.steps)
    result, video = run_prompt(pipeline, settings, number)
    row = video[6::12][:_SHEET_COLUMNS]
    return result, np.concatenate(list(row), 1)


def report_name(settings: Settings) -> str:
    return f"evaluation_{settings.mode}_{settings.set}_{settings.frames}"


def summary(results: list[Result]) -> dict[str, dict[str, float]]:
    """Shares of what is right: of all prompts, and of every kind of scene."""
    groups = {"all": results} | {kind: [r for r in results if r.kind == kind] for kind in KINDS}
    table = {}
    for name, group in groups.items():
        if not group:
            continue
        rows = [asdict(result.finding) | {"stable": result.stable} for result in group]
        table[name] = {"prompts": len(group)} | {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        table[name]["colour_and_shape"] = float(np.mean([r.finding.colour and r.finding.shape for r in group]))
        errors = [result.error for result in group if result.error is not None]
        if errors:
            table[name]["position_error"] = float(np.mean(errors))
    return table


def evaluate(weights: Path, scale_factor: float, settings: Settings, numbers: range, workers: int) -> list[Result]:
    """Results of the given prompts; writes the contact sheet of the first ones."""
    jobs = [(weights, scale_factor, settings, number) for number in numbers]
    context = torch.multiprocessing.get_context("spawn")
    results, rows = [], []
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for result, row in tqdm(pool.map(_work, jobs), total=len(jobs), desc=settings.mode, mininterval=5):
            results.append(result)
            rows.append(row)
    sheet = WORK / f"{report_name(settings)}.png"
    Image.fromarray(np.concatenate(rows[:_SHEET_ROWS])).save(sheet)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a training's checkpoint instead of the exported weights")
    parser.add_argument("--last", action="store_true", help="the checkpoint's last weights, not the averaged ones")
    parser.add_argument("--mode", choices=list(_PREFIX_FRAMES), default="t2v")
    parser.add_argument("--set", choices=_SETS, default="captions", help="which prompts (default captions)")
    parser.add_argument("--prompts", type=int, default=200, help="how many scenes (default 200)")
    parser.add_argument("--first", type=int, default=0, help="number of the first scene (default 0)")
    parser.add_argument("--frames", type=int, default=96, help="video frames (default 96)")
    parser.add_argument("--steps", type=int, default=64, help="denoising steps (default 64)")
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each (default 2)")
    args = parser.parse_args(argv)
    WORK.mkdir(exist_ok=True)
    settings = Settings(args.mode, args.set, args.frames, args.steps)
    numbers = range(args.first, args.first + args.prompts)
    started = time.monotonic()

    with tempfile.TemporaryDirectory() as folder:
        weights, scale_factor = WEIGHTS, magi_config().runtime.scale_factor
        if args.checkpoint is not None:
            weights = Path(folder)
            scale_factor = export_models(args.checkpoint, weights, averaged=not args.last)
        results = evaluate(weights, scale_factor, settings, numbers, args.workers)

    for number, result in zip(numbers, results, strict=True):
        place = "" if result.error is None else f" {result.error:.1%}"
        print(f"{number:3} {result.finding}{'' if result.stable else ' drifts'}{place} {result.prompt}")
    table = summary(results)
    for name, figures in table.items():
        print(f"{name:8}", " ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    record = asdict(settings) | {
        "weights": str(args.checkpoint or "shipped"),
        "minutes": (time.monotonic() - started) / 60,
    }
    path = WORK / f"{report_name(settings)}.json"
    path.write_text(json.dumps(record | {"summary": table, "results": [asdict(r) for r in results]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
