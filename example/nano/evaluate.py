"""Videos of held-out captions, measured: `python -m example.nano.evaluate --prompts 200`.

Runs the product's own pipeline on the exported weights, or with `--checkpoint work/dit.pt` on a training that still
runs. Writes `work/evaluation_<mode>_<set>_<frames>.json` and a contact sheet beside it: one prompt a row, two frames a
chunk. The way to judge the training: the loss says little.

Modes: `t2v` from the caption alone; `i2v` from the scene's first frame; `v2v` from 72 frames of the scene, where the
true continuation is known. With `--change_at 96` every video has the prompt of another number for its first 96 frames,
and what is measured begins two seconds after the change. Sets: `captions` are sentences that training never saw, of
combinations of looks and motion that it did see; `combinations` were never seen.
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

from example.nano.model import CONFIG, magi_config
from example.nano.scenes.data import FPS, KINDS, PERIOD, Scene, caption, held_out_caption, sample_scene
from example.nano.scenes.drawing import render
from example.nano.scenes.measure import Finding, is_stable, measure, position_error
from example.nano.training.common import WORK
from example.nano.training.export import export_models
from example.nano.training.latents import CHUNK_FRAMES
from inference.config import MagiConfig, load_config
from inference.pipeline import MagiPipeline, Sample
from inference.session.times import PromptChange

_FIRST_SEED = 500_000
_PREFIX_FRAMES = {"t2v": 0, "i2v": 1, "v2v": 72}
_SETS = ("captions", "combinations")
_SHEET_ROWS, _SHEET_COLUMNS = 48, 16
# Frames in which a new prompt may take over, and how far away the number of the prompt before it is.
TAKE_OVER = 48
MINUTE = 60 * FPS
_EARLIER = 5000


@dataclass(frozen=True)
class Settings:
    """What is made: `frames` new ones a video, in `steps` denoising steps. `change`: how many frames of another prompt
    are made before, 0 for none; then the first `TAKE_OVER` frames after it are not measured.
    """

    mode: str
    set: str
    frames: int
    steps: int
    change: int = 0


@dataclass(frozen=True)
class Result:
    """One prompt. `minutes`: what the last 96 frames of each whole minute show. `error`: mean distance of the objects
    from their true places in the first chunk, in picture widths, where the truth is known. `stable`: whether the last
    chunk still shows the first one's objects.
    """

    prompt: str
    kind: str
    finding: Finding
    minutes: list[Finding]
    stable: bool
    error: float | None


@cache
def load_pipeline(config: MagiConfig, frames: int, steps: int) -> MagiPipeline:
    return MagiPipeline.load(config.with_overrides(num_frames=frames, num_steps=steps), torch.device("cpu"))


def exported(checkpoint: Path, folder: Path, averaged: bool) -> MagiConfig:
    """The configuration of a checkpoint's models, which are written into `folder`."""
    scale_factor = export_models(checkpoint, folder, averaged)
    return magi_config().with_overrides(
        load=str(folder / "magi"),
        t5_pretrained=str(folder / "t5"),
        vae_pretrained=str(folder / "vae"),
        special_token_path=str(folder / "special_tokens.npz"),
        scale_factor=scale_factor,
    )


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
    sample = Sample(prompt, prefix, str(number))
    if settings.change:
        _, earlier = prompt_of(number + _EARLIER, settings.set)
        sample = Sample(earlier, prefix, str(number), (PromptChange(settings.change // CHUNK_FRAMES, prompt),))
    video = torch.cat(list(pipeline.frames(sample))).numpy()
    if settings.change:
        video = video[settings.change + TAKE_OVER :]
    error = None
    if settings.mode == "v2v":
        truth = render(scene, CHUNK_FRAMES, first_frame=given)
        error = position_error(video[:CHUNK_FRAMES], truth, scene)
    ends = range(MINUTE, len(video) + 1, MINUTE)
    minutes = [measure(video[end - PERIOD : end], scene) for end in ends]
    # Of a long video the first minute says what there is, and the others whether it stays.
    finding = measure(video[:MINUTE], scene)
    return Result(prompt, scene.kind, finding, minutes, is_stable(video, scene), error), video


def _work(job: tuple[MagiConfig, Settings, int]) -> tuple[Result, np.ndarray]:
    """For worker processes: the result, and the row of the contact sheet."""
    torch.set_num_threads(1)
    config, settings, number = job
    frames = settings.frames + (settings.change + TAKE_OVER if settings.change else 0)
    pipeline = load_pipeline(config, frames, settings.steps)
    result, video = run_prompt(pipeline, settings, number)
    row = video[6::12][:_SHEET_COLUMNS]
    return result, np.concatenate(list(row), 1)


def report_name(settings: Settings) -> str:
    changed = f"_after_{settings.change}" if settings.change else ""
    return f"evaluation_{settings.mode}_{settings.set}_{settings.frames}{changed}"


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


def evaluate(config: MagiConfig, settings: Settings, numbers: range, workers: int) -> list[Result]:
    """Results of the given prompts; writes the contact sheet of the first ones."""
    jobs = [(config, settings, number) for number in numbers]
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
    parser.add_argument("--config_file", default=str(CONFIG), help="which of the bundled models (default: nano.json)")
    parser.add_argument("--checkpoint", type=Path, help="a training's checkpoint instead of the exported weights")
    parser.add_argument("--last", action="store_true", help="the checkpoint's last weights, not the averaged ones")
    parser.add_argument("--mode", choices=list(_PREFIX_FRAMES), default="t2v")
    parser.add_argument("--set", choices=_SETS, default="captions", help="which prompts (default captions)")
    parser.add_argument("--prompts", type=int, default=200, help="how many scenes (default 200)")
    parser.add_argument("--first", type=int, default=0, help="number of the first scene (default 0)")
    parser.add_argument("--frames", type=int, default=96, help="video frames (default 96)")
    parser.add_argument(
        "--change_at", type=int, default=0, metavar="FRAMES", help="begin with another prompt for so many frames"
    )
    parser.add_argument("--steps", type=int, default=64, help="denoising steps (default 64)")
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each (default 2)")
    args = parser.parse_args(argv)
    WORK.mkdir(exist_ok=True)
    if args.change_at % CHUNK_FRAMES or args.change_at < 0 or (args.change_at and args.mode == "v2v"):
        parser.error(f"--change_at takes whole chunks of {CHUNK_FRAMES} frames, and goes with t2v and i2v")
    settings = Settings(args.mode, args.set, args.frames, args.steps, args.change_at)
    numbers = range(args.first, args.first + args.prompts)
    started = time.monotonic()

    with tempfile.TemporaryDirectory() as folder:
        config = load_config(args.config_file)
        if args.checkpoint is not None:
            config = exported(args.checkpoint, Path(folder), averaged=not args.last)
        results = evaluate(config, settings, numbers, args.workers)

    for number, result in zip(numbers, results, strict=True):
        place = "" if result.error is None else f" {result.error:.1%}"
        print(f"{number:3} {result.finding}{'' if result.stable else ' drifts'}{place} {result.prompt}")
    table = summary(results)
    for name, figures in table.items():
        print(f"{name:8}", " ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    for minute, findings in enumerate(zip(*(result.minutes for result in results), strict=True), 1):
        print(f"minute {minute}, its last four seconds: {Finding.summary(list(findings))}")
    record = asdict(settings) | {
        "weights": str(args.checkpoint or args.config_file),
        "minutes": (time.monotonic() - started) / 60,
    }
    path = WORK / f"{report_name(settings)}.json"
    path.write_text(json.dumps(record | {"summary": table, "results": [asdict(r) for r in results]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
