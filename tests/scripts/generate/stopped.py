"""Runs of scripts/generate.py that end before their video is complete, and what they leave."""

import json
import os
import re
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from inference.video.reading import probe_video

SECONDS = 900


def stop(process: subprocess.Popen[bytes], sent: signal.Signals, at_step: int, to: int | None = None) -> str:
    """Wait until the progress bar shows ``at_step``, send the signal, wait for the end; gives what was said.

    ``to``: the number of the process that gets it among those torchrun started; by default it is ``process`` itself.
    """
    watchdog = threading.Timer(SECONDS, kill_all, (process.pid,))
    watchdog.start()
    said, done = "", -1
    while done < at_step:
        part = os.read(process.stderr.fileno(), 4096).decode()
        assert part, f"the process ended by itself: {said}"
        said += part
        done = int((re.findall(r"(\d+)/\d+ \[", said) or ["-1"])[-1])
    os.kill(process.pid if to is None else process_of(process.pid, to), sent)
    _, rest = process.communicate()
    watchdog.cancel()
    return said + rest.decode()


def kill_all(process: int) -> None:
    """Kill a process and what it has started: ranks outlive a torchrun that is killed."""
    for number in (*children(process), process):
        os.kill(number, signal.SIGKILL)


def children(process: int) -> list[int]:
    """The processes that ``process`` has started; none where there is no /proc."""
    list_of_them = Path(f"/proc/{process}/task/{process}/children")
    return [int(number) for number in list_of_them.read_text().split()] if list_of_them.exists() else []


def process_of(torchrun: int, rank: int) -> int:
    """The process number of a rank."""
    variables = {child: Path(f"/proc/{child}/environ").read_bytes().split(b"\0") for child in children(torchrun)}
    return next(child for child, its in variables.items() if f"RANK={rank}".encode() in its)


def assert_partial_video(folder: Path, stem: str, picture: bool = True) -> dict[str, Any]:
    """``stem`` is a playable file of whole chunks, described by its own sidecar, which is given, and a ``picture``."""
    info = probe_video(folder / f"{stem}.mp4")
    assert info.frames > 0 and info.frames % 24 == 0
    assert info.duration == pytest.approx(info.frames / 24, abs=1e-3)
    sidecar = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
    assert (sidecar["stopped"], sidecar["video"]) == (True, f"{stem}.mp4")
    assert sidecar["frames"]["written"] == info.frames < sidecar["config"]["runtime_config"]["num_frames"]
    if picture:
        with Image.open(folder / f"{stem}.reuse.png") as image:
            image.load()
    return sidecar
