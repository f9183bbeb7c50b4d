"""Videos of held-out captions, measured: `python -m example.nano.evaluate --prompts 40`.

Runs the product's own pipeline on the exported weights, or with `--checkpoint work/dit.pt` on a training that still
runs. Writes `work/evaluation_<mode>.json` and a contact sheet beside it: one prompt a row, two frames a chunk. The way
to judge the training: the loss says little.

Modes: `t2v` from the caption alone; `i2v` from the scene's first frame; `v2v` from 72 frames of the scene, where the
true continuation is known.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from example.nano.data import Scene, caption, render
from example.nano.export import WEIGHTS, export_models
from example.nano.latents import scene_of
from example.nano.measure import Finding, measure, position_error
from example.nano.model import magi_config
from example.nano.training import WORK
from inference.pipeline import MagiPipeline, Sample

_FIRST_SEED = 500_000
_PREFIX_FRAMES = {"t2v": 0, "i2v": 1, "v2v": 72}
_WINDOW_FRAMES = 24


@dataclass(frozen=True)
class Result:
    """One prompt. `error`: mean distance of the object from its true place in the first chunk, in picture widths."""

    prompt: str
    finding: Finding
    error: float | None


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


def run_prompt(pipeline: MagiPipeline, scene: Scene, number: int, mode: str) -> tuple[Result, np.ndarray]:
    """Make and measure one video; returns it too, (T, 64, 64, 3) uint8."""
    given = _PREFIX_FRAMES[mode]
    prompt = caption(scene, np.random.default_rng(number))
    prefix = torch.from_numpy(render(scene, given)) if given else None
    video = torch.cat(list(pipeline.frames(Sample(prompt, prefix, str(number))))).numpy()
    error = None
    if mode == "v2v":
        chunk = video[:_WINDOW_FRAMES]
        error = position_error(chunk, render(scene, len(chunk), first_frame=given), scene)
    return Result(prompt, measure(video, scene), error), video


def evaluate(pipeline: MagiPipeline, count: int, mode: str, sheet: Path) -> list[Result]:
    results, rows = [], []
    for number in range(count):
        result, video = run_prompt(pipeline, scene_of(_FIRST_SEED + number, True), number, mode)
        results.append(result)
        place = "" if result.error is None else f" {result.error:.1%}"
        print(f"{number:3} {result.finding}{place} {result.prompt}", flush=True)
        rows.append(np.concatenate(list(video[6::12][:16]), 1))
    Image.fromarray(np.concatenate(rows)).save(sheet)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a training's checkpoint instead of the exported weights")
    parser.add_argument("--last", action="store_true", help="the checkpoint's last weights, not the averaged ones")
    parser.add_argument("--mode", choices=list(_PREFIX_FRAMES), default="t2v")
    parser.add_argument("--prompts", type=int, default=40, help="how many held-out scenes (default 40)")
    parser.add_argument("--frames", type=int, default=96, help="video frames (default 96)")
    parser.add_argument("--steps", type=int, default=64, help="denoising steps (default 64)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    WORK.mkdir(exist_ok=True)

    with tempfile.TemporaryDirectory() as folder:
        weights, scale_factor = WEIGHTS, magi_config().runtime.scale_factor
        if args.checkpoint is not None:
            weights = Path(folder)
            scale_factor = export_models(args.checkpoint, weights, averaged=not args.last)
        pipeline = load_pipeline(weights, scale_factor, args.frames, args.steps)
        results = evaluate(pipeline, args.prompts, args.mode, WORK / f"evaluation_{args.mode}.png")

    print(Finding.summary([result.finding for result in results]))
    errors = [result.error for result in results if result.error is not None]
    if errors:
        print(f"mean position error after one chunk: {np.mean(errors):.1%} of the width")
    settings = {"mode": args.mode, "frames": args.frames, "steps": args.steps}
    path = WORK / f"evaluation_{args.mode}.json"
    path.write_text(json.dumps(settings | {"results": [asdict(result) for result in results]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
