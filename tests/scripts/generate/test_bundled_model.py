"""The bundled model through scripts/generate.py, from another folder: reuse, compression, and a prompt that matters."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from inference.config import load_config
from inference.pipeline import MagiPipeline, Sample
from inference.video.reading import probe_video, read_video


def test_a_prompt_becomes_a_video_with_reuse_and_compression(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--method_config", "configs/method/flowcache_fast.yaml", "--num_frames", "144", "--num_steps", "32")
    assert script.main(["--prompt", "a big red ball bounces up and down in the sky", *flags]) == 0
    info = probe_video(tmp_path / "outputs" / "video.mp4")
    assert (info.frames, info.width, info.height, info.duration) == (144, 64, 64, pytest.approx(6, abs=1e-3))
    sidecar = json.loads((tmp_path / "outputs" / "video.json").read_text(encoding="utf-8"))
    assert sidecar["chunks"]["all"] == 6 and sidecar["work"]["share_reused"] > 0.05
    assert sidecar["work"]["kv_compactions"] == 1
    frames = read_video(tmp_path / "outputs" / "video.mp4", 24, 64, 64).float()
    assert frames.std() > 5  # no even grey


def test_the_prompt_decides_what_is_seen() -> None:
    config = load_config("configs/model/nano.json").with_overrides(num_frames=24, num_steps=16)
    pipeline = MagiPipeline.load(config, torch.device("cpu"))

    def mean_colour(colour: str) -> torch.Tensor:
        sample = Sample(f"a big {colour} square stays still in the room")
        return torch.cat(list(pipeline.frames(sample))).float().mean(dim=(0, 1, 2))

    red, blue = mean_colour("red"), mean_colour("blue")  # from the same noise
    assert red[0] - red[2] > blue[0] - blue[2] + 10, (red, blue)
