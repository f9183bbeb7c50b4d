"""Whole sampling runs with a tiny model on CPU processes: killed workers, a stopped launcher, damaged files."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from inference.video.reading import read_video
from sampling.config import read_run
from sampling.job import Job, make_job
from sampling.maker import SampleMaker
from sampling.verify import check_sample, verify
from tests.loading import load_script
from tests.paths import ROOT
from tests.tiny_runs import make_samples, write_prompts, write_run
from tests.warm.start import warm_python

FILES = {"scene": 4, "color": 4, "temporal_flickering": 4}
PROMPTS = ("a cat", "the mat", "a cat on a mat", "a cat, a mat")
SAMPLES = 4 * 2 + 4 * 2 + 4 * 3
WAIT = 1800.0  # s, until a test gives up on a process; long, for machines that are busy otherwise


def write_config(folder: Path, checkpoint: Path, **settings: Any) -> Path:
    """A configuration of ``SAMPLES`` samples in folder/out, and its prompts."""
    write_prompts(folder, FILES, PROMPTS)
    values = {
        "num_frames": 10,
        "dimensions": ["background_consistency", "color", "temporal_flickering"],
        "samples_per_prompt": 2,
        "flickering_samples": 3,
        "workers": 2,
        "device": "cpu",
    }
    return write_run(folder, checkpoint, **values | settings)


@pytest.fixture(scope="module")
def sample() -> ModuleType:
    return load_script("sample")


@pytest.fixture
def run(sample: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Call the launcher's main in this process, which torchrun leaves with handlers of its own."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "executable", warm_python())  # what torchrun and the guards start workers with
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield lambda *flags: sample.main([str(flag) for flag in flags])
    for number, handler in handlers.items():
        signal.signal(number, handler)


def frames_of(job: Job, folder: Path) -> dict[str, torch.Tensor]:
    height, width = job.model.runtime.video_size_h, job.model.runtime.video_size_w
    return {str(task.path): read_video(folder / task.path, 24, height, width) for task in job.tasks}


def videos(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/*.mp4") if not path.name.startswith(".~"))


def workers_of(config: Path) -> list[int]:
    """Process numbers of the workers proper, not of their guards."""
    listing = subprocess.run(["ps", "-axo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    lines = [line.split(maxsplit=1) for line in listing.splitlines()]
    return [int(pid) for pid, args in lines if "sample/worker.py --work" in args and str(config) in args]


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + WAIT
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {WAIT:.0f} s for {what}"
        time.sleep(0.02)
    return found


@pytest.fixture
def start_launcher() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start the script as a user does, in a process of its own, which does not outlive the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*flags: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(ROOT / "scripts" / "sample.py"), *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def stop_in_the_middle(launcher: subprocess.Popen[bytes], job: Job) -> None:
    """Terminate the launcher, which takes its workers with it."""
    wait_until(lambda: len(videos(job.output)) >= 5 or launcher.poll() is not None, "five videos")
    launcher.send_signal(signal.SIGTERM)
    said = launcher.communicate(timeout=WAIT)[1].decode()
    assert launcher.returncode == 130 and "the same command goes on from here" in said, said
    wait_until(lambda: not workers_of(job.output / "sampling.yaml"), "the workers' end")


def kill_one(job: Job) -> int:
    """Kill the first worker that has started to work; gives its process number."""
    at_work = wait_until(lambda: list((job.private / "work").glob("*-*")), "a worker at work")
    process = int(at_work[0].name.rpartition("-")[2])
    os.kill(process, signal.SIGKILL)
    return process


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def corrupt(path: Path) -> None:
    """Change bytes in the middle; the file keeps its size."""
    contents = bytearray(path.read_bytes())
    middle = len(contents) // 2
    contents[middle : middle + 16] = bytes(255 - value for value in contents[middle : middle + 16])
    path.write_bytes(bytes(contents))


@pytest.mark.slow
def test_a_disturbed_run_gives_what_an_undisturbed_one_gives(
    checkpoint: Path,
    tmp_path: Path,
    run: Callable[..., int],
    start_launcher: Callable[..., subprocess.Popen[bytes]],
) -> None:
    """A stopped launcher, damaged files, a killed worker, a sample that always fails; other numbers of workers."""
    config = write_config(tmp_path, checkpoint, num_steps=24)  # enough to be stopped in the middle
    job = make_job(read_run(config))
    out = job.output
    assert len(job.tasks) == SAMPLES >= 24
    reference = make_job(read_run(config, {"output": str(tmp_path / "reference")}))
    make_samples(reference)

    stop_in_the_middle(start_launcher(str(config)), job)
    done = videos(out)
    assert 5 <= len(done) < SAMPLES
    modified = {path: path.stat().st_mtime_ns for path in done}

    # Two finished files are damaged; one sample cannot be put in its place.
    truncate(done[0])
    corrupt(done[1])
    blocked = next(task for task in reversed(job.tasks) if out / task.path not in done)
    (out / blocked.path).mkdir(parents=True)

    # Three workers go on; one of them is killed when it has started to work.
    shutil.rmtree(job.private / "work", ignore_errors=True)
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_one, job)
        assert run(config, "--workers", "3") == 1
    failures = json.loads((out / "failures.json").read_text(encoding="utf-8"))["failures"]
    assert [entry["path"] for entry in failures] == [str(blocked.path)]
    assert failures[0]["state"] == "missing" and failures[0]["seed"] == blocked.seed
    assert len(failures[0]["errors"]) == 3 and all("Directory" in error for error in failures[0]["errors"])
    lost = [file for file in (job.private / "errors").iterdir() if "died or was lost" in file.read_text()]
    assert len(lost) == 1 and f"-{killed.result()} died" in lost[0].read_text()
    # What was whole was left alone.
    assert all((path.stat().st_mtime_ns == before) == (path not in done[:2]) for path, before in modified.items())

    # One worker makes the rest.
    (out / blocked.path).rmdir()
    assert run(config, "--workers", "1") == 0
    assert len(videos(out)) == SAMPLES and not verify(job)
    assert not (out / "failures.json").exists() and not job.private.exists()
    ours, theirs = frames_of(job, out), frames_of(reference, reference.output)
    assert len(ours) == SAMPLES and all(torch.equal(frames, theirs[path]) for path, frames in ours.items())
    assert len({frames.numpy().tobytes() for frames in ours.values()}) == SAMPLES


@pytest.fixture(scope="module")
def finished(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of four samples that are there."""
    settings = {"dimensions": ["color"], "samples_per_prompt": 1}
    config = write_config(tmp_path_factory.mktemp("finished"), checkpoint, **settings)
    make_samples(make_job(read_run(config)))
    return config


@pytest.fixture
def job(finished: Path, tmp_path: Path) -> Job:
    """The finished samples again, to be damaged."""
    job = make_job(read_run(finished))
    shutil.copytree(job.output, tmp_path / "out")
    return make_job(read_run(finished, {"output": str(tmp_path / "out")}))


def flags(job: Job, finished: Path) -> tuple[str, ...]:
    return (str(finished), "--output", str(job.output))


def change_sidecar(job: Job, number: int, *place: str, value: Any) -> None:
    path = job.output / job.tasks[number].sidecar
    contents = json.loads(path.read_text(encoding="utf-8"))
    inner = contents
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(contents), encoding="utf-8")


def test_verification_of_whole_samples(job: Job, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(job) == []
    assert load_script("sample/verify").main(list(flags(job, finished))) == 0
    assert "4 of 4 samples" in capsys.readouterr().out


def test_a_video_that_is_no_sample_is_found(job: Job, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stray = (job.output / job.tasks[0].path).with_name("a dog-0.mp4")
    shutil.copy(job.output / job.tasks[0].path, stray)
    assert load_script("sample/verify").main(list(flags(job, finished))) == 1
    printed = capsys.readouterr().out
    assert f"unlisted\t{stray}\t" in printed and "4 of 4 samples" in printed


@pytest.mark.parametrize("damage", [truncate, corrupt, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_video_is_found(
    job: Job, finished: Path, damage: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(job.output / job.tasks[2].path)
    assert [finding.task for finding in verify(job)] == [job.tasks[2]]
    assert load_script("sample/verify").main(list(flags(job, finished))) == 1
    assert "3 of 4 samples" in capsys.readouterr().out


def test_a_video_of_another_length_is_found(job: Job) -> None:
    """Though its sidecar was made to fit."""
    longer = make_job(job.run.model_copy(update={"num_frames": 12, "output": str(job.output)}))
    SampleMaker(longer, torch.device("cpu"), "longer").make(longer.tasks[1])
    finding = check_sample(job, job.tasks[1])
    assert finding is not None and finding.kind == "foreign" and "num_frames is 12 instead of 10" in finding.reason
    change_sidecar(job, 1, "config", "runtime_config", "num_frames", value=10)
    finding = check_sample(job, job.tasks[1])
    assert finding is not None and finding.kind == "damaged" and "12 frames of 48x32 instead of 10" in finding.reason


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (("seed", "noise"), 5, r"seed\.noise is 5 instead of \d+"),
        (("seed", "base"), 7, r"seed\.base is 7 instead of 1234"),
        (("prompt",), "a dog", "prompt is 'a dog' instead of 'a cat on a mat'"),
        (("config", "runtime_config", "num_steps"), 64, "num_steps is 64 instead of 8"),
        (("method", "method"), "flowcache", r"method\.method is 'flowcache' instead of 'none'"),
        (("conditioning",), {"name": "clip.mp4", "bytes": 3}, r"conditioning\.name is 'clip.mp4' instead of None"),
    ],
)
def test_a_sample_of_other_settings_is_found_and_not_touched(
    job: Job,
    finished: Path,
    run: Callable[..., int],
    caplog: pytest.LogCaptureFixture,
    place: tuple[str, ...],
    value: Any,
    reason: str,
) -> None:
    change_sidecar(job, 2, *place, value=value)
    (finding,) = verify(job)
    assert finding.kind == "foreign" and re.search(reason, finding.reason)
    assert run(*flags(job, finished)) == 1
    assert "1 samples in" in caplog.text and "make them again with --remake" in caplog.text


@pytest.mark.parametrize("contents", ["", "{", "[]", '{"prompt": "a cat"}'])
def test_a_sidecar_that_is_none(job: Job, contents: str) -> None:
    (job.output / job.tasks[0].sidecar).write_text(contents, encoding="utf-8")
    (finding,) = verify(job)
    assert finding.kind == "damaged" and "cannot be used" in finding.reason


def test_dry_run_lists_what_is_there_and_what_is_not(
    job: Job, finished: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    truncate(job.output / job.tasks[1].path)
    (job.output / job.tasks[3].path).unlink()
    change_sidecar(job, 2, "seed", "base", value=7)
    before = sorted(job.output.rglob("*"))
    more = ("--dimensions", "color,scene,background_consistency", "--samples-per-prompt", "2", "--dry-run")
    assert run(*flags(job, finished), *more) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = dict(reversed(line.split("\t")) for line in lines if "\t" in line)
    whole = {"scene": PROMPTS, "color": PROMPTS}
    assert set(listed) == {
        str(job.output / stem / f"{prompt}-{index}.mp4") for stem in whole for prompt in PROMPTS for index in (0, 1)
    }
    assert [listed[str(job.output / task.path)] for task in job.tasks] == ["there", "damaged", "foreign", "missing"]
    assert set(listed.values()) == {"there", "damaged", "foreign", "missing"}
    counts = [line.split() for line in lines if "\t" not in line]
    assert ["color", "color", "8", "1", "7"] in counts and ["background_consistency", "scene", "8", "0", "8"] in counts
    assert counts[-1][-3:] == ["16", "1", "15"]
    assert sorted(job.output.rglob("*")) == before


def test_a_repeated_run_makes_nothing_and_a_remake_all(
    job: Job, finished: Path, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, sample: ModuleType
) -> None:
    """Without processes: what the launcher leaves for the workers to do."""
    monkeypatch.setattr(sample, "distribute", lambda job, args: None)
    assert run(*flags(job, finished)) == 0
    assert verify(make_job(read_run(job.output / "sampling.yaml"))) == []
    assert run(*flags(job, finished), "--num_steps", "12") == 1
    assert verify(job) == []
    assert run(*flags(job, finished), "--num_steps", "12", "--remake") == 1
    failures = json.loads(job.failures.read_text(encoding="utf-8"))["failures"]
    assert [entry["path"] for entry in failures] == [str(task.path) for task in job.tasks]


@pytest.mark.parametrize("place", ["sampling.yaml", "failures.json", "sidecar", "video"])
def test_files_that_no_run_left_are_not_replaced(
    job: Job,
    finished: Path,
    run: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    sample: ModuleType,
    caplog: pytest.LogCaptureFixture,
    place: str,
) -> None:
    monkeypatch.setattr(sample, "distribute", lambda job, args: None)
    first, foreign = job.tasks[0], place in ("sidecar", "video")
    file = job.output / {"sidecar": first.sidecar, "video": first.path}.get(place, place)
    if place == "video":
        (job.output / first.sidecar).unlink()
    file.write_text("{}", encoding="utf-8")
    assert run(*flags(job, finished)) == 1
    said = (
        f"but no sampling run has left them, the first is {first.path}" if foreign else "this program has not left it"
    )
    assert said in caplog.text and file.read_text(encoding="utf-8") == "{}"
    if foreign:  # then it goes on, and finds that the workers made nothing
        assert run(*flags(job, finished), "--remake") == 1 and job.failures.exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("--data", "no_such_folder"), "data: no_such_folder does not exist"),
        (("--num_steps", "9"), "num_steps 9 is not a multiple"),
        (("--samples_per_prompt", "0"), "samples_per_prompt: Input should be greater than or equal to 1, got 0"),
        (("--dimensions", "colour"), "unknown VBench dimensions"),
        (("--mode", "v2v"), "unknown setting 'mode' for benchmark vbench"),
        (("--model_name", "a/b"), "model_name 'a/b' must be the name of a folder"),
        (("--rel_l1_thresh", "0.1"), "method none takes no parameters"),
    ],
)
def test_bad_settings(
    finished: Path, run: Callable[..., int], caplog: pytest.LogCaptureFixture, settings: tuple[str, ...], said: str
) -> None:
    assert run(finished, *settings, "--dry_run") == 1
    assert said in caplog.text


def test_a_misspelt_flag(finished: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(finished, "--sample_per_prompt", "2")
    assert "did you mean --samples_per_prompt?" in capsys.readouterr().err
