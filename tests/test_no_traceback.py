"""Odd inputs for every path that a program takes: one line says what is wrong, nothing waits, and no input changes."""

import hashlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from inference.video.writing import VideoWriter
from tests.loading import load_program
from tests.paths import ROOT

SECONDS = 30  # for one input; a program that reads a FIFO would wait for ever

PRESET = "configs/model/nano.json"
T2V = ("scripts/generate.py", "--prompt", "x", "--output_path", "{out}/video.mp4")
SAMPLE = ("scripts/sample.py", "configs/sample/vbench.yaml", "--dry_run", "--output", "{out}")
PHYSICS = ("scripts/sample.py", "configs/sample/physicsiq.yaml", "--dry_run", "--output", "{out}")
# Programs with one path left open.
OPEN: dict[str, tuple[str, ...]] = {
    "configuration": (*T2V, "--config_file", "{odd}"),
    "method": (*T2V, "--method", "{odd}"),
    "image": (*T2V, "--mode", "i2v", "--image_path", "{odd}"),
    "clip": (*T2V, "--mode", "v2v", "--prefix_video_path", "{odd}"),
    "calibration": (*T2V, "--target_psnr", "30", "--calibration", "{odd}"),
    "original": ("scripts/metric.py", "{odd}", "{video}", "--no_lpips", "--output_path", "{out}"),
    "generated": ("scripts/metric.py", "{video}", "{odd}", "--no_lpips", "--output_path", "{out}"),
    "LPIPS": ("scripts/metric.py", "{video}", "{video}", "--lpips_weights", "{odd}", "--output_path", "{out}"),
    "checked": ("scripts/check_model.py", "{odd}"),
    "checked method": ("scripts/check_model.py", PRESET, "--skip_files", "--method", "{odd}"),
    "sampling": ("scripts/sample.py", "{odd}", "--dry_run"),
    "sampled model": (*SAMPLE, "--config_file", "{odd}"),
    "sampled method": (*SAMPLE, "--method", "{odd}"),
    "prompts": (*SAMPLE, "--data", "{odd}"),
    "augmented": (*SAMPLE, "--data", "{out}", "--augmented_prompts", "{odd}"),
    "descriptions": (*PHYSICS, "--data", "{out}", "--descriptions", "{odd}"),
    "verified": ("scripts/sample/verify.py", "{odd}"),
    "scored": ("scripts/score/physicsiq.py", "{odd}"),
    "scored folder": ("scripts/score/physicsiq.py", "--generated", "{odd}", "--data", "{out}"),
    "judged": ("scripts/score/vbench.py", "{odd}"),
    "calibrated": ("scripts/calibrate.py", "--config_file", "{odd}", "--output", "{out}/c.json"),
    "calibration prompts": ("scripts/calibrate.py", "--prompts", "{odd}", "--count", "90", "--output", "{out}/c.json"),
}
# What is fine where it is put, or ends as it should with status 0.
FINE = {("checked method", "method.yaml"), ("scored folder", "folder"), ("original", "video.mp4")}
FINE |= {("sampled method", "method.yaml"), ("calibration prompts", "list.yaml"), ("calibration prompts", "text.txt")}
FINE |= {("generated", "video.mp4"), ("clip", "video.mp4"), ("image", "picture.png"), ("method", "method.yaml")}


def odd_inputs(folder: Path) -> None:
    (folder / "folder").mkdir()
    (folder / "empty").touch()
    (folder / "text.txt").write_text("no such thing\n" * 50, encoding="utf-8")
    (folder / "bytes.bin").write_bytes(bytes(range(256)) * 40)
    (folder / "picture.png.json").write_text('{"a": 1}', encoding="utf-8")
    (folder / "deep.json").write_text("[" * 100_000, encoding="utf-8")
    (folder / "list.yaml").write_text("- 1\n- 2\n", encoding="utf-8")
    (folder / "method.yaml").write_text("method: none\n", encoding="utf-8")
    (folder / "nowhere").symlink_to(folder / "not there")
    Image.new("RGB", (32, 32)).save(folder / "picture.png")
    save_file({"a": torch.zeros(2)}, folder / "tensors.safetensors")
    with VideoWriter(folder / "video.mp4", 24, 32, 32) as writer:
        writer.append(torch.zeros(24, 32, 32, 3, dtype=torch.uint8))
    os.mkfifo(folder / "fifo")


NAMES = ("folder", "empty", "text.txt", "bytes.bin", "picture.png.json", "deep.json", "list.yaml", "nowhere")
NAMES += ("picture.png", "tensors.safetensors", "video.mp4", "fifo", "missing")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    odd_inputs(folder)
    return folder


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class TooLate(BaseException):
    """No program catches this one."""


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TooLate(f"still not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(command: tuple[str, ...], odd: Path, out: Path, video: Path) -> int:
    """The status of a program, called in this process; whatever it does not catch comes through."""
    program, *flags = (part.format(odd=odd, out=out, video=video) for part in command)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    main = load_program(program).main
    try:
        with at_most(SECONDS):
            return main(flags)
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.mark.slow
@pytest.mark.parametrize("place", OPEN)
def test_no_odd_input_is_a_traceback(
    place: str,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    before, problems = contents(inputs), []
    for name in (*NAMES, "method.yaml"):
        if (place, name) in FINE:
            continue
        out = tmp_path / f"{name}.out"
        out.mkdir()
        caplog.clear()
        try:
            status = run(OPEN[place], inputs / name, out, inputs / "video.mp4")
        except (Exception, TooLate) as error:  # noqa: BLE001 - what the user would see as a traceback
            problems.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
            continue
        said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        told = said[-1] if said else capsys.readouterr().err.strip()
        if status == 0:
            problems.append(f"{name}: status 0")
        elif place not in ("checked",) and (not told or len(told.splitlines()) > 12):
            problems.append(f"{name}: status {status}, said {told[:300]!r}")
    assert not problems, "\n".join(problems)
    assert contents(inputs) == before


def test_there_are_enough_of_them() -> None:
    assert len(OPEN) * (len(NAMES) + 1) - len(FINE) >= 150
