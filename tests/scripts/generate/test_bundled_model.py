"""The bundled model through scripts/generate.py, from another folder: reuse, compression, and a prompt that matters."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from inference.config import load_config
from inference.pipeline import MagiPipeline, Sample
from inference.video.reading import probe_video, read_video
from tests.paths import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.skipif(not (ROOT / ".venv").is_dir(), reason="the script would make the environment: scripts/test.sh does")
def test_a_prompt_becomes_a_video_with_reuse_and_compression(tmp_path: Path) -> None:
    """The very command of a user, with the interpreter that it starts."""
    command = ["bash", str(ROOT / "scripts" / "single_run" / "flowcache_t2v.sh")]
    flags = ["--prompt", "a big red ball bounces up and down in the sky", "--num_frames", "144", "--num_steps", "32"]
    result = subprocess.run([*command, *flags], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    info = probe_video(tmp_path / "outputs" / "flowcache_t2v.mp4")
    assert (info.frames, info.width, info.height, info.duration) == (144, 64, 64, pytest.approx(6, abs=1e-3))
    sidecar = json.loads((tmp_path / "outputs" / "flowcache_t2v.json").read_text(encoding="utf-8"))
    assert sidecar["chunks"]["all"] == 6 and sidecar["work"]["share_reused"] > 0.05
    assert sidecar["work"]["kv_compactions"] == 1
    frames = read_video(tmp_path / "outputs" / "flowcache_t2v.mp4", 24, 64, 64).float()
    assert frames.std() > 5  # no even grey


def test_the_prompt_decides_what_is_seen() -> None:
    config = load_config("configs/model/nano.json").with_overrides(num_frames=24, num_steps=16)
    pipeline = MagiPipeline.load(config, torch.device("cpu"))

    def mean_colour(colour: str) -> torch.Tensor:
        sample = Sample(f"a big {colour} square stays still in the room")
        return torch.cat(list(pipeline.frames(sample))).float().mean(dim=(0, 1, 2))

    red, blue = mean_colour("red"), mean_colour("blue")  # from the same noise
    assert red[0] - red[2] > blue[0] - blue[2] + 10, (red, blue)
