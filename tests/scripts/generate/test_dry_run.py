"""scripts/generate.py --dry_run: what would be made and taken is said, and nothing is made."""

import os
import re
from pathlib import Path

import pytest

from inference.pipeline import MagiPipeline
from tests.scripts.conftest import Run


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MagiPipeline, "load", lambda *_: pytest.fail("models were loaded"))


def test_everything_is_said_and_nothing_made(generate: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--dry_run", "--num_frames", "480", "--method", "multistep") == 0
    said = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    lines = dict(line.split(maxsplit=1) for line in said.splitlines())
    assert "480 frames of 48x32, 20.0 s at 24 a second" in lines["video"]
    assert lines["chunks"] == "20, 8 steps each"
    assert lines["method"] == "multistep, from configs/method/multistep.yaml"
    assert lines["files"] == "all there"
    assert re.fullmatch(r"[\d.]+ GiB at most with the process, [\d.]+ GiB are free", lines["memory"])
    assert re.fullmatch(r"about [\d.]+ MB for the video, [\d.]+ GiB are free", lines["disk"])
    assert re.fullmatch(r"\d+ forwards, [\d.e-]+ TFLOP; fewer by what is reused", lines["work"])
    assert "TFLOP/s of a large product on cpu" in lines["time"]
    assert lines["nothing"] == "was made: this is a dry run"


def test_what_stands_against_the_run_gives_status_1(
    generate: Run, checkpoint_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for weights in checkpoint_copy.rglob("diffusion_pytorch_model*"):
        weights.unlink()
    assert generate("--dry_run", "--config_file", str(checkpoint_copy / "distill.json")) == 1
    said = capsys.readouterr().out
    assert re.search(r"^NO files +VAE: ", said, re.MULTILINE) and "the run would not start, or not fit" in said


def test_what_a_run_refuses_a_dry_run_refuses(generate: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flags = ("--method", "flowcache_slow", "--compress_kv_cache", "true", "--total_cache_chunk_nums", "3")
    for refused in (flags, ("--mode", "i2v", "--image_path", "no.png"), ("--output_path", "x.avi")):
        assert generate("--dry_run", *refused) == 1
    assert not (tmp_path / "out").exists() and len([r for r in caplog.records if r.levelname == "ERROR"]) == 3


def test_a_video_that_is_there_stays_and_is_named(
    generate: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "video.mp4").write_bytes(b"older")
    assert generate("--dry_run") == 0
    assert "in the place of the one that is there" in capsys.readouterr().out
    assert os.listdir(tmp_path / "out") == ["video.mp4"]
    assert generate("--dry_run", "--no_overwrite") == 0
    assert "video_2.mp4" in capsys.readouterr().out
