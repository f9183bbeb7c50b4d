"""A Physics-IQ benchmark of small squares that move, in the official folder layout."""

import csv
import shutil
from pathlib import Path

import torch

from inference.video.writing import VideoWriter

FPS = 8
SIZE = 64
FRAMES = 5 * FPS
# Scenario: category, pixels per frame to the right.
SCENARIOS = {"trimmed-slide": ("Solid Mechanics", 2), "trimmed-pour": ("Fluid Dynamics", -3)}
VIEWS = ("perspective-left", "perspective-center")


def square(speed: int, row: int, start: int = 0, frames: int = FRAMES, size: int = SIZE) -> torch.Tensor:
    """A light square on dark ground, which leaves at one side and comes back at the other: (T, size, size, 3) uint8."""
    video = torch.full((frames, size, size, 3), 30, dtype=torch.uint8)
    video[:, row : row + 16, :16] = torch.tensor([230, 200, 120], dtype=torch.uint8)
    return torch.stack([frame.roll(start + speed * number, dims=1) for number, frame in enumerate(video)])


def real_take(scenario: str, view: str, take: int) -> torch.Tensor:
    """What is filmed; the second take starts two pixels further on."""
    return square(SCENARIOS[scenario][1], row=12 + 16 * VIEWS.index(view), start=10 + 2 * (take - 1))


def write(path: Path, frames: torch.Tensor, fps: int = FPS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, fps, frames.shape[1], frames.shape[2], crf=10) as writer:
        writer.append(frames)


def generated_names() -> dict[str, tuple[str, str]]:
    """Scenario and view by the name of the generated video."""
    pairs = [(scenario, view) for scenario in SCENARIOS for view in VIEWS]
    return {f"{number:04}_{view}_{scenario}.mp4": (scenario, view) for number, (scenario, view) in enumerate(pairs, 1)}


def build_benchmark(root: Path) -> None:
    """Make ``root``/physics-IQ-benchmark with the testing videos, and ``root``/descriptions/descriptions.csv."""
    rows, names = [], list(generated_names().items())
    for take in (1, 2):
        for offset, (name, (scenario, view)) in enumerate(names, 1):
            number = f"{offset + (take - 1) * len(names):04}"
            file = f"{number}_testing-videos_{FPS}FPS_{view}_take-{take}_{scenario}.mp4"
            folder = root / "physics-IQ-benchmark" / "split-videos" / "testing" / f"{FPS}FPS"
            write(folder / file, real_take(scenario, view, take))
            category = SCENARIOS[scenario][0]
            rows.append([f"{number}_{view}_take-{take}_{scenario}.mp4", f"A {scenario}.", category, name])
    table = root / "descriptions" / "descriptions.csv"
    table.parent.mkdir()
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["scenario", "description", "category", "generated_video_name"], *rows])


def submit_still(folder: Path) -> None:
    """Videos in which nothing moves, as if a model had made them."""
    for name in generated_names():
        write(folder / name, square(speed=0, row=20))


def submit_take(data: Path, folder: Path, take: int) -> None:
    """The real ``take`` of the benchmark in ``data`` as if a model had made it: the very files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (scenario, view) in generated_names().items():
        (real,) = data.rglob(f"*_testing-videos_{FPS}FPS_{view}_take-{take}_{scenario}.mp4")
        shutil.copy(real, folder / name)
