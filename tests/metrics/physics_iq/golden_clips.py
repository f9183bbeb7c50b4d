"""A benchmark of two scenarios from three sides in clips without any loss, so that every decoder gives the same pixels,
and four results of a made-up model: what the official numbers in golden.json were measured on.
"""

import csv
from pathlib import Path

import av
import numpy as np

FPS = 8
FRAMES = 5 * FPS
VIEWS = ("perspective-left", "perspective-center", "perspective-right")
# Width and height; the second scenario's are odd, and a quarter of them is no whole number.
SCENARIOS = {"trimmed-slide": (64, 48), "trimmed-pour": (65, 63)}


def clip(scenario: str, view: str, kind: str) -> np.ndarray:
    """One clip, (FRAMES, H, W, 3) uint8 RGB: bright boxes that move over a graded ground. Integer arithmetic only.

    ``kind``: take-1, take-2 (a little later and brighter), or generated (slower, another colour, with noise).
    """
    width, height = SCENARIOS[scenario]
    number, late = VIEWS.index(view), {"take-1": 0, "take-2": 2, "generated": 5}[kind]
    speed = (2, 3, 1)[number] if kind != "generated" else (2, 2, 2)[number]
    ground = np.add.outer(np.arange(height), 2 * np.arange(width))[..., None] * np.array([1, 2, 1]) // 4 + 20
    frames = np.repeat(ground[None], FRAMES, 0)
    for time in range(FRAMES):
        left = (10 * number + late + speed * time) % (width - 16)
        top = (8 + (time // 3 if scenario == "trimmed-pour" else 4 * number)) % (height - 18)
        colour = (230, 190 + late, 90) if kind != "generated" else (180, 120, 200)
        frames[time, top : top + 18, left : left + 16] = colour
    noise = (np.arange(frames.size).reshape(frames.shape) * 7919 // 13) % 5 if kind == "generated" else 0
    return (frames + noise).clip(0, 255).astype(np.uint8)


def write_exact(path: Path, frames: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def build(root: Path) -> Path:
    """Make ``root``/physics-IQ-benchmark, its descriptions and ``root``/generated, which is returned."""
    pairs = [(scenario, view) for scenario in SCENARIOS for view in VIEWS]
    rows = []
    for take in (1, 2):
        for offset, (scenario, view) in enumerate(pairs, 1):
            number = f"{offset + (take - 1) * len(pairs):04}"
            name = f"{number}_testing-videos_{FPS}FPS_{view}_take-{take}_{scenario}.mp4"
            folder = root / "physics-IQ-benchmark" / "split-videos" / "testing" / f"{FPS}FPS"
            write_exact(folder / name, clip(scenario, view, f"take-{take}"))
            generated = f"{offset:04}_{view}_{scenario}.mp4"
            rows.append([f"{number}_{view}_take-{take}_{scenario}.mp4", "A thing.", "Optics", generated])
            if take == 1:
                write_exact(root / "generated" / generated, clip(scenario, view, "generated"))
    table = root / "descriptions" / "descriptions.csv"
    table.parent.mkdir()
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["scenario", "description", "category", "generated_video_name"], *rows])
    return root / "generated"
