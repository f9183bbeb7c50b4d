"""Several processes, started by torchrun: reference cases, whole videos, and what is left where a process dies."""

import json
import shutil
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

from inference.video.reading import probe_video, read_video
from tests.loading import load_script
from tests.ranks import run_ranks
from tests.scripts.conftest import ROOT, Run, Start
from tests.scripts.generate.stopped import SECONDS, assert_partial_video, stop

pytestmark = pytest.mark.slow

GOLDEN = ROOT / "tests" / "golden"
WHOLE_RUNS = ("sample", "flowcache")
REUSE = ("--rel_l1_thresh", "0.3", "--warmup_steps", "2")
TWO = ("--gpus", "2", "--device", "cpu")


def check_parity(directory: Path) -> tuple[int, str]:
    """Status and output of scripts/check_parity.py."""
    script = load_script("check_parity")
    with redirect_stdout(StringIO()) as output:
        status = script.main([str(directory)])
    return status, output.getvalue()


def copy_cases(directory: Path, cases: tuple[str, ...] | None = None) -> int:
    """Whole runs of the reference data and their models; gives the number of cases."""
    for file in GOLDEN.glob("dit_*"):
        if "forward" not in file.name:
            shutil.copy(file, directory)
    count = 0
    for family in WHOLE_RUNS:
        index: dict[str, Any] = json.loads((GOLDEN / f"{family}_index.json").read_text(encoding="utf-8"))
        chosen = {name: case for name, case in index.items() if cases is None or name in cases}
        for name in chosen:
            shutil.copy(GOLDEN / f"{family}_{name}.safetensors", directory)
        (directory / f"{family}_index.json").write_text(json.dumps(chosen), encoding="utf-8")
        count += len(chosen)
    return count


@pytest.mark.parametrize(
    ("ranks", "cases"), [(2, None), (4, ("base_v2v_kvrange", "distill_12steps_i2v", "kv_token_b5"))]
)
def test_reference_runs(tmp_path: Path, ranks: int, cases: tuple[str, ...] | None) -> None:
    """Reuse maps and kept tokens exactly, latents as one process."""
    count = copy_cases(tmp_path, cases)
    (status, output), *others = run_ranks(ranks, check_parity, tmp_path)
    assert status == 0 and f"of {count} cases compared" in output and "0 missed, 0 files unrecognised" in output, output
    assert others == [(0, "")] * (ranks - 1)


def test_a_changed_reference_is_noticed(tmp_path: Path) -> None:
    copy_cases(tmp_path, ("distill_12steps_i2v",))
    index = tmp_path / "sample_index.json"
    index.write_text(index.read_text(encoding="utf-8").replace('"clean_t": 0.9999', '"clean_t": 0.5'), encoding="utf-8")
    (status, output), _ = run_ranks(2, check_parity, tmp_path)
    assert status == 1 and "MISS  sample  distill_12steps_i2v" in output


def test_two_processes_make_the_video_of_one(generate: Run, start_process: Start, tmp_path: Path) -> None:
    assert generate("--num_frames", "96", *REUSE) == 0
    process = start_process(tmp_path / "two", "--num_frames", "96", *REUSE, *TWO)
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said.decode()
    assert said.decode().count("96 frames of 48x32 in 4 chunks") == 1 and "on cpu and 1 more" in said.decode()
    one, two = (json.loads((tmp_path / name / "video.json").read_text(encoding="utf-8")) for name in ("out", "two"))
    assert one["ranks"] == {"count": 1}
    assert two["ranks"] == {"count": 2, "strategy": "cp_ulysses", "backend": "gloo"}
    assert two["reuse_map"] == one["reuse_map"] and one["work"]["chunk_forwards_reused"] > 5
    assert two["work"] == one["work"] and 2 * two["kv_cache_bytes"] == one["kv_cache_bytes"]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["video.json", "video.mp4", "video.reuse.png"]
    frames = [read_video(tmp_path / name / "video.mp4", 24, 32, 48, select="first") for name in ("out", "two")]
    assert (frames[0].to(torch.int16) - frames[1].to(torch.int16)).abs().float().mean() < 0.5


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes of torchrun in /proc")
def test_a_killed_process_leaves_what_is_done(start_process: Start, tmp_path: Path) -> None:
    """With processes as torchrun starts them for a user: no other test has them."""
    (tmp_path / "video.mp4").write_bytes(b"an older video")
    process = start_process(tmp_path, "--num_frames", "9600", *TWO, python=sys.executable)
    said = stop(process, signal.SIGKILL, at_step=14, to=1)
    assert process.returncode == 1, said
    assert "rank 1 has ended: the run cannot go on" in said
    # torchrun's own, of which no rank adds one.
    assert said.count("Traceback (most recent call last)") == said.count("errors.ChildFailedError: ") == 1, said
    assert "video.partial.mp4 has the" in said and "the older video.mp4 is unchanged" in said
    # torchrun leaves 30 s, in which a busy machine may not come to the picture.
    sidecar = assert_partial_video(tmp_path, "video.partial", picture=False)
    assert sidecar["frames"]["written"] >= 3 * 24 and sidecar["ranks"]["count"] == 2


def test_ctrl_c_stops_all_and_keeps_what_is_done(start_process: Start, tmp_path: Path) -> None:
    process = start_process(tmp_path, "--num_frames", "9600", *TWO)
    said = stop(process, signal.SIGINT, at_step=14)
    assert process.returncode != 0, said
    assert_partial_video(tmp_path, "video")
    assert "stopped early: " in said


def test_what_cannot_be_shared_is_refused_before_torchrun(
    generate: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert generate("--gpus", "3") == 1
    assert "3 processes cannot share the 4 key/value groups of this model evenly" in caplog.text
    assert generate("--gpus", "0") == 1
    assert "--gpus must be at least 1, got 0" in caplog.text
    assert generate("--gpus", "1") == 0
    assert probe_video(tmp_path / "out" / "video.mp4").frames == 24


def test_processes_that_do_not_fit_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    """Started by torchrun itself, three processes: each says why it ends, and none waits for the others."""
    results = run_ranks(3, generate_status, checkpoint, tmp_path)
    for status, said in results:
        assert status == 1 and "3 processes cannot share the 4 key/value groups" in said
    assert "rank 2: error:" in results[2][1] and results[0][1].startswith("error:")


def generate_status(checkpoint: Path, folder: Path) -> tuple[int, str]:
    """The script as a rank's process runs it, without a process of its own."""
    flags = ("--config_file", str(checkpoint / "distill.json"), "--prompt", "a cat", "--device", "cpu")
    with redirect_stderr(StringIO()) as said:
        status = load_script("generate").main([*flags, "--output_path", str(folder / "video.mp4")])
    return status, said.getvalue()
