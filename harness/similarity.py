"""From two files or folders to figures and files about how alike videos are, or how one drifts (docs/metrics.md)."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.json_files import save_json
from harness.outputs import FIGURE_MARK, Inputs, Ours, beginning_with, check_outputs, is_our_figure, json_with
from inference.files import read_json, replacing
from metrics.drift import Drift, draw_drift, drift_entry, measure_drift
from metrics.similarity import report
from metrics.similarity.lpips_distance import LpipsDistance
from metrics.similarity.measures import Similarity, compare
from metrics.similarity.picture import draw, strip_indices
from metrics.similarity.video_pairs import Pair, VideoFacts, differences, probe, read_batches, read_frames

logger = logging.getLogger(__name__)

# What has to agree in two sidecars, or else more than the method differs.
SHARED_SETTINGS = ("seed", "prompt", "attention_backend")


@dataclass(frozen=True)
class Compared:
    """A pair of videos with its figures; ``warnings`` are sentences about their sidecars."""

    pair: Pair
    facts: VideoFacts
    result: Similarity
    warnings: tuple[str, ...]


def check_pairs(pairs: Iterable[Pair]) -> dict[Pair, VideoFacts]:
    """Decode every video once; ValueError with all that cannot be compared, before any figure is computed."""
    facts, problems = {}, []
    for pair in pairs:
        original, generated = probe(pair.original), probe(pair.generated)
        facts[pair] = original
        problems += [f"{pair.original} and {pair.generated}: {reason}" for reason in differences(original, generated)]
    if problems:
        raise ValueError("\n".join(["these videos cannot be compared frame by frame:", *problems]))
    return facts


def compare_pair(
    pair: Pair, facts: VideoFacts, lpips: LpipsDistance | None, device: torch.device, batch: int
) -> Compared:
    """The figures of one pair, ``batch`` frames at a time."""
    result = compare(read_batches(pair, batch), lpips, device, strip_indices(facts.frames))
    return Compared(pair, facts, result, tuple(sidecar_differences(pair)))


def sidecar_differences(pair: Pair) -> list[str]:
    """Settings in which the sidecars of the two differ, one sentence each; nothing where one has no sidecar."""
    contents = []
    for video in (pair.original, pair.generated):
        sidecar = video.with_suffix(".json")
        if not sidecar.is_file():
            return []
        try:
            contents.append(read_json(sidecar))
        except (OSError, ValueError) as error:
            return [f"{pair.name}: the sidecar {sidecar} cannot be read ({error}), so settings were not compared"]
        if not isinstance(contents[-1], dict):
            return [f"{pair.name}: {sidecar} is no sidecar of ours, so settings were not compared"]
    original, generated = contents
    return [
        f"{pair.name}: {name} differs, {original.get(name)!r} and {generated.get(name)!r}: the figures do not show the "
        "method alone"
        for name in SHARED_SETTINGS
        if original.get(name) != generated.get(name)
    ]


def check_results(folder: Path, pairs: Iterable[Pair], inputs: Inputs) -> None:
    """ValueError where ``write_results`` would replace an input, or a file that it has not left."""
    outputs: dict[Path, Ours] = {
        folder / "metrics.json": json_with("figures", "summary", "videos"),
        folder / "videos.csv": beginning_with("video,frames,"),
        folder / "frames.csv": beginning_with("video,frame,"),
    }
    pairs = list(pairs)
    outputs |= {_picture(folder, pair): is_our_figure for pair in pairs}
    videos = {
        "original_video": [pair.original for pair in pairs],
        "generated_video": [pair.generated for pair in pairs],
    }
    check_outputs(outputs, inputs | videos)


def write_results(folder: Path, compared: Iterable[Compared], about: Mapping[str, Any]) -> list[Path]:
    """Write metrics.json, videos.csv, frames.csv and a PNG per video into ``folder``; ``about`` goes into the JSON."""
    compared = list(compared)
    results = {one.pair.name: one.result for one in compared}
    contents = {
        **about,
        "figures": {name: text for name, (_, text, _) in report.FIGURES.items()},
        "summary": report.summary(results),
        "videos": [_entry(one) for one in compared],
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "metrics.json", folder / "videos.csv", folder / "frames.csv"]
    save_json(written[0], contents)
    for path, text in zip(written[1:], (report.videos_csv(results), report.frames_csv(results)), strict=True):
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
    for one in compared:
        path = _picture(folder, one.pair)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            draw(part, one.result, one.pair.name, FIGURE_MARK)
        written.append(path)
    return written


def _picture(folder: Path, pair: Pair) -> Path:
    return folder / f"{pair.name}.png"


def _entry(one: Compared) -> dict[str, Any]:
    return {
        "name": one.pair.name,
        "original": str(one.pair.original),
        "generated": str(one.pair.generated),
        "size": [one.facts.width, one.facts.height],
        "fps": float(one.facts.fps),
        "warnings": list(one.warnings),
        **report.video_entry(one.result),
    }


def drift_of(video: Path, folder: Path) -> tuple[Drift, list[Path]]:
    """Measure ``video`` and leave NAME.drift.json and NAME.drift.png in ``folder``.

    Raises FileNotFoundError, IsADirectoryError and ValueError for what is no video of two seconds, before anything is
    written.
    """
    if video.is_dir():
        raise IsADirectoryError(f"{video} is a folder; --drift takes one video file")
    if not video.is_file():
        raise FileNotFoundError(f"{video} does not exist")
    written = [folder / f"{video.name}.drift.json", folder / f"{video.name}.drift.png"]
    check_outputs({written[0]: json_with("video", "fps"), written[1]: is_our_figure}, {"drift": video})
    fps = float(probe(video).fps)
    drift = measure_drift(read_frames(video), fps)
    folder.mkdir(parents=True, exist_ok=True)
    save_json(written[0], {"video": str(video), "fps": fps, **drift_entry(drift)})
    with replacing(written[1]) as part:
        draw_drift(part, drift, video.name, FIGURE_MARK)
    return drift, written
