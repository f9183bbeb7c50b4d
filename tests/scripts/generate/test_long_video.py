"""Prompts over time, videos without an end, and going on with a run that was killed, through the script."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from inference.video.reading import probe_video
from tests.scripts.conftest import Run, Start
from tests.scripts.generate.stopped import kill_all, stop

CAT, DOG = "a cat on a mat", "the dog runs"


def sidecar(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "video.json").read_text(encoding="utf-8"))


def kill_after(process: subprocess.Popen[bytes], states: Path, chunk: int) -> None:
    """SIGKILL for a run and all that it has started, at any moment once it has kept what is behind ``chunk``."""
    while all(int(path.name.partition(".")[0]) < chunk for path in states.glob("[0-9]*.pt")):
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.01)
    kill_all(process.pid)
    process.communicate()


def test_prompts_over_time(generate: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flags = ("--num_frames", "96", "--num_steps", "8")
    assert generate(*flags) == 0
    assert sidecar(tmp_path / "out")["prompts"] == [{"chunk": 0, "second": 0.0, "prompt": CAT}]
    once = (tmp_path / "out" / "video.mp4").read_bytes()
    assert generate(*flags, "--prompt_at", f"2s: {CAT}") == 0
    assert (tmp_path / "out" / "video.mp4").read_bytes() == once
    schedule = tmp_path / "prompts.txt"
    schedule.write_text(f"2s: {DOG}\n", encoding="utf-8")
    assert generate(*flags, "--prompt_schedule", str(schedule), "--prompt_at", "chunk 3: the sun") == 0
    assert "other prompts take over at 2s, 3s" in caplog.text
    assert (tmp_path / "out" / "video.mp4").read_bytes() != once
    assert [entry["prompt"] for entry in sidecar(tmp_path / "out")["prompts"]] == [CAT, DOG, "the sun"]
    assert generate(*flags, "--prompt_at", f"9s: {DOG}") == 1
    assert "a prompt at 9s comes too late: the video has 4 chunks" in caplog.text


def test_a_prompt_schedule_is_an_input(generate: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    schedule = tmp_path / "video.json"
    schedule.write_text(f"2s: {DOG}\n", encoding="utf-8")
    assert generate("--prompt_schedule", str(schedule), "--output_path", str(tmp_path / "video.mp4")) == 1
    assert "is the input of --prompt_schedule" in caplog.text and schedule.read_text(encoding="utf-8") == f"2s: {DOG}\n"
    assert generate("--prompt_schedule", str(tmp_path / "none.txt")) == 1
    assert "--prompt_schedule" in caplog.text and "No such file" in caplog.text


def test_a_video_without_end_ends_in_time(generate: Run, tmp_path: Path) -> None:
    assert generate("--num_frames", "endless", "--num_steps", "8", "--max_seconds", "1") == 0
    found = sidecar(tmp_path / "out")
    written = found["frames"]["written"]
    assert written == 24 * found["chunks"]["all"] and written >= 24 and found["stopped"] is False
    assert probe_video(tmp_path / "out" / "video.mp4").frames == written
    assert found["config"]["runtime_config"]["num_frames"] == "endless"


def test_ctrl_c_ends_a_video_without_end(start_process: Start, tmp_path: Path) -> None:
    process = start_process(tmp_path, "--num_frames", "endless", "--num_steps", "8", "--save_state", "auto")
    while not list(tmp_path.glob("video.state/*.pt")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1].decode()
    assert process.returncode == 0 and "Traceback" not in said, said
    assert "ending: the chunks under way are finished; Ctrl-C drops them" in said
    # Nothing is left to go on with: it is complete.
    assert sorted(os.listdir(tmp_path)) == ["video.json", "video.mp4", "video.reuse.png"]
    found = sidecar(tmp_path)
    assert found["stopped"] is False and found["frames"]["written"] == 24 * found["chunks"]["all"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_runs_are_gone_on_with(start_process: Start, tmp_path: Path, ranks: int) -> None:
    flags = ["--num_frames", "216", "--num_steps", "8", "--save_state", "true", "--prompt_at", f"3s: {DOG}"]
    flags += ["--gpus", "2", "--device", "cpu"] if ranks == 2 else []
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    process = start_process(undisturbed, *flags)
    said = process.communicate()[1].decode()
    assert process.returncode == 0, said
    moments = random.Random(ranks)
    kills = ([], ["--resume"]) if ranks == 1 else ([],)
    for resume in kills:
        # Not the Python that tests share, which would stand between us and the ranks.
        process = start_process(killed, *flags, *resume, python=sys.executable)
        kill_after(process, killed / "video.state", moments.randrange(2, 4) + 3 * bool(resume))
    process = start_process(killed, *flags, "--resume")
    said = process.communicate()[1].decode()
    assert process.returncode == 0 and "going on behind" in said, said
    # Of two ranks the first may have come to keep what was finished when it lost the other one.
    left = {name for name in os.listdir(killed) if ".partial" not in name}
    assert left == {"video.json", "video.mp4", "video.reuse.png"} and (ranks == 2 or len(os.listdir(killed)) == 3)
    for name in ("video.mp4", "video.reuse.png"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes()
    found, expected = sidecar(killed), sidecar(undisturbed)
    assert len(found["resumed_behind_chunks"]) == len(kills) and expected["resumed_behind_chunks"] == []
    for name in ("work", "prompts", "reuse_map", "frames", "kv_cache_bytes"):
        assert found[name] == expected[name]


def test_an_interrupted_run_is_a_video_and_can_be_gone_on_with(
    start_process: Start, generate: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ["--num_frames", "192", "--num_steps", "8", "--save_state"]
    said = stop(start_process(tmp_path / "out", *flags), signal.SIGINT, 14)
    assert "the same command with --resume goes on from here" in said
    assert probe_video(tmp_path / "out" / "video.mp4").frames < 192
    # To begin anew would lose it.
    assert generate(*flags) == 1 and "is of an unfinished run: --resume goes on with it; remove it" in caplog.text
    for change, said in [
        (["--seed", "7"], "is of another run: config.runtime_config.seed was 1234 and is 7"),
        (["--prompt_at", f"5s: {DOG}"], f"prompts.5 was not given and is {DOG}"),
        (["--lossless"], "lossless was False and is True"),
        (["--method", "multistep"], "method.computed_share was not given and is"),
    ]:
        assert generate(*flags, "--resume", *change) == 1 and said in caplog.text
    assert generate(*flags, "--resume", "--no_overwrite") == 1 and "leave one out" in caplog.text
    assert generate(*flags, "--resume") == 0
    resumed = (tmp_path / "out" / "video.mp4").read_bytes()
    assert sorted(os.listdir(tmp_path / "out")) == ["video.json", "video.mp4", "video.reuse.png"]
    # Where nothing is to be gone on with it begins at the beginning.
    assert generate(*flags, "--resume", "--output_path", str(tmp_path / "other" / "video.mp4")) == 0
    assert (tmp_path / "other" / "video.mp4").read_bytes() == resumed


def test_of_short_runs_nothing_is_kept_unasked(generate: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert generate("--num_frames", "96", "--num_steps", "8", "--save_state", "auto") == 0
    assert "--resume" not in caplog.text
