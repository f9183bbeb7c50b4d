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

from inference.media import probe_video

SECONDS = 300


def stop(process: subprocess.Popen[bytes], sent: signal.Signals, at_step: int, to: int | None = None) -> str:
    """Wait until the progress bar shows ``at_step``, send the signal, wait for the end; gives what was said.

    ``to``: the number of the process that gets it among those torchrun started; by default it is ``process`` itself.
    """
    watchdog = threading.Timer(SECONDS, process.kill)
    watchdog.start()
    said, done = "", -1
    while done < at_step:
        part = os.read(process.stderr.fileno(), 4096).decode()
        assert part, f"the process ended by itself: {said}"
        said += part
        done = int((re.findall(r"(\d+)/\d+ \[", said) or ["-1"])[-1])
    os.kill(process.pid if to is None else started_by(process.pid, to), sent)
    _, rest = process.communicate()
    watchdog.cancel()
    return said + rest.decode()


def started_by(torchrun: int, rank: int) -> int:
    """The process number of a rank."""
    children = Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text(encoding="utf-8").split()
    ranks = {child: Path(f"/proc/{child}/environ").read_bytes().split(b"\0") for child in children}
    return next(int(child) for child, variables in ranks.items() if f"RANK={rank}".encode() in variables)


def assert_partial_video(folder: Path, stem: str) -> dict[str, Any]:
    """``stem`` is a playable file of whole chunks, described by its own sidecar, which is given."""
    info = probe_video(folder / f"{stem}.mp4")
    assert info.frames > 0 and info.frames % 24 == 0
    assert info.duration == pytest.approx(info.frames / 24, abs=1e-3)
    sidecar = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
    assert (sidecar["stopped"], sidecar["video"]) == (True, f"{stem}.mp4")
    assert sidecar["frames"]["written"] == info.frames < sidecar["config"]["runtime_config"]["num_frames"]
    with Image.open(folder / f"{stem}.reuse.png") as picture:
        picture.load()
    return sidecar
