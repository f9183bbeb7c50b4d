"""What a run of scripts/generate.py leaves that was stopped, or failed, before its video was complete."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from inference.session.session import Session, VideoChunk
from inference.video.reading import probe_video
from tests.scripts.conftest import Run, Start
from tests.scripts.generate.stopped import assert_partial_video, stop

# Eight steps make the first chunk, two more each further one.
STEPS_OF_THE_FIRST_CHUNK = 8
# What tells a run's sidecar from a file of the user's.
SIDECAR = json.dumps({"video": "video.mp4", "reuse_map": [], "config": {}}).encode()


def test_ctrl_c_keeps_whole_chunks(start_process: Start, tmp_path: Path) -> None:
    process = start_process(tmp_path, "--num_frames", "9600")
    said = stop(process, signal.SIGINT, STEPS_OF_THE_FIRST_CHUNK + 6)
    assert process.returncode == 130 and "Traceback" not in said, said
    assert sorted(os.listdir(tmp_path)) == ["video.json", "video.mp4", "video.reuse.png"]
    sidecar = assert_partial_video(tmp_path, "video")
    assert sidecar["frames"]["written"] >= 3 * 24 and sidecar["work"]["steps"] >= STEPS_OF_THE_FIRST_CHUNK + 6
    assert f"stopped early: {tmp_path / 'video.mp4'} has the {sidecar['frames']['written']} frames made so far" in said


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_termination_leaves_an_older_video_alone(start_process: Start, tmp_path: Path, sent: signal.Signals) -> None:
    older = {"video.mp4": b"an older video", "video.json": SIDECAR, "video.reuse.png": b"its picture"}
    for name, content in older.items():
        (tmp_path / name).write_bytes(content)
    process = start_process(tmp_path, "--num_frames", "9600")
    said = stop(process, sent, STEPS_OF_THE_FIRST_CHUNK + 2)
    assert process.returncode == 130 and "Traceback" not in said, said
    partial = ["video.partial.json", "video.partial.mp4", "video.partial.reuse.png"]
    assert sorted(os.listdir(tmp_path)) == sorted([*older, *partial])
    assert {name: (tmp_path / name).read_bytes() for name in older} == older
    assert_partial_video(tmp_path, "video.partial")
    assert "video.partial.mp4 has the" in said and "the older video.mp4 is unchanged" in said


def test_a_killed_run_is_rescued_by_the_next(start_process: Start, generate: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    process = start_process(folder, "--num_frames", "9600")
    said = stop(process, signal.SIGKILL, STEPS_OF_THE_FIRST_CHUNK + 6)
    [hidden] = os.listdir(folder)
    assert probe_video(folder / hidden).frames >= 3 * 24, said
    assert generate() == 0
    assert sorted(os.listdir(folder)) == ["video.json", "video.mp4", "video.partial.mp4", "video.reuse.png"]
    rescued = probe_video(folder / "video.partial.mp4").frames
    assert rescued >= 3 * 24 and rescued % 24 == 0


def test_ctrl_c_before_the_first_chunk_writes_nothing(start_process: Start, tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(b"an older video")
    process = start_process(tmp_path, "--num_steps", "8000")
    said = stop(process, signal.SIGINT, 1)
    assert process.returncode == 130 and "Traceback" not in said, said
    assert "stopped before the first frame: nothing was written" in said
    assert os.listdir(tmp_path) == ["video.mp4"] and (tmp_path / "video.mp4").read_bytes() == b"an older video"


@pytest.fixture
def fails_after_a_chunk(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline runs out of memory once it has handed out one chunk."""
    whole = Session.__iter__

    def chunks(session: Session) -> Iterator[VideoChunk]:
        yield next(whole(session))
        raise torch.OutOfMemoryError("CUDA out of memory: 3 GiB")

    monkeypatch.setattr(Session, "__iter__", chunks)


def test_a_failed_run_keeps_what_is_done(
    generate: Run, fails_after_a_chunk: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert generate("--num_frames", "72") == 1
    assert assert_partial_video(tmp_path / "out", "video")["frames"]["written"] == 24
    assert "error: CUDA out of memory: 3 GiB" in caplog.text


def test_a_complete_run_replaces_an_older_video(generate: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name, content in {"video.mp4": b"older", "video.json": SIDECAR, "video.reuse.png": b"older"}.items():
        (tmp_path / "out" / name).write_bytes(content)
    assert generate() == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["video.json", "video.mp4", "video.reuse.png"]
    assert probe_video(tmp_path / "out" / "video.mp4").frames == 24
    assert json.loads((tmp_path / "out" / "video.json").read_text(encoding="utf-8"))["stopped"] is False


def test_a_sidecar_that_cannot_be_written(generate: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "out" / "video.json").mkdir(parents=True)
    assert generate() == 1
    assert f"video.mp4 was written, but not its sidecar {tmp_path / 'out' / 'video.json'}" in caplog.text
    assert probe_video(tmp_path / "out" / "video.mp4").frames == 24
    assert sorted(os.listdir(tmp_path / "out")) == ["video.json", "video.mp4"]


def test_a_name_that_is_taken(generate: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert generate() == 0 and "exists" not in caplog.text
    first = (tmp_path / "out" / "video.mp4").read_bytes()
    assert generate("--no_overwrite", "--seed", "7") == 0
    assert sorted(os.listdir(tmp_path / "out"))[3:] == ["video_2.json", "video_2.mp4", "video_2.reuse.png"]
    assert (tmp_path / "out" / "video.mp4").read_bytes() == first and "exists" not in caplog.text
    assert generate() == 0
    assert "video.mp4 exists; it stays until the new one is complete, and is replaced then" in caplog.text
