"""scripts/generate.py as the tests call it: in this process where that is enough, as a process of its own otherwise."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from harness.signals import STOPPING
from tests.loading import load_script
from tests.paths import ROOT
from tests.warm.start import warm_python

SCRIPT = ROOT / "scripts" / "generate.py"

Run = Callable[..., int]
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture(scope="session")
def script() -> ModuleType:
    return load_script("generate")


@pytest.fixture
def generate(script: ModuleType, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Run]:
    """Call the script's main with the tiny model and ``tmp_path/out/video.mp4``; later flags win. Gives the status."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    caplog.set_level("INFO")

    def run(*flags: str) -> int:
        return script.main(defaults(checkpoint, tmp_path / "out") + list(flags))

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def start_process(checkpoint: Path) -> Start:
    """Start the script as a process; ``folder`` is where video.mp4 goes, ``setup`` runs in the new process first.

    ``python``: what starts it, by default the one that tests share (``tests/warm``).
    """

    def start(
        folder: Path, *flags: str, setup: Callable[[], None] = lambda: None, python: str | None = None
    ) -> subprocess.Popen[bytes]:
        def prepare() -> None:
            # A test run in the background may have been started with Ctrl-C ignored, which processes inherit.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            setup()

        return subprocess.Popen(
            [python or warm_python(), str(SCRIPT), *defaults(checkpoint, folder), *flags],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=prepare,
        )

    return start


def defaults(checkpoint: Path, folder: Path) -> list[str]:
    return [
        *("--config_file", str(checkpoint / "distill.json"), "--prompt", "a cat on a mat"),
        *("--output_path", str(folder / "video.mp4")),
        *("--save_state", "false"),
    ]
