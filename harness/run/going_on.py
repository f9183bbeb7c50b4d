"""Going on with a video that an earlier process began, and keeping what that needs (docs/long_video.md, "Resume")."""

import argparse
import hashlib
import logging
import time
from dataclasses import asdict
from typing import Any

import torch

from harness.json_files import commit
from harness.methods import Method
from harness.run.need import free_disk
from harness.run.state import StateFolder, differences, state_bytes
from inference.config import SWITCHES, MagiConfig
from inference.model.weights import weights_fingerprint
from inference.parallel.group import ContextParallel
from inference.pipeline import Sample
from inference.session.session import Session
from inference.video.writing import VideoWriter, Written

logger = logging.getLogger(__name__)

# By themselves, states are kept of runs that take longer, and of those that have no end.
LONG_SECONDS = 600
# Then they take at most this share of the time.
SHARE = 0.05


def identity_of_run(
    args: argparse.Namespace, method: Method, config: MagiConfig, sample: Sample, ranks: int
) -> dict[str, Any]:
    """All that the numbers of a run depend on, in plain values."""
    settings = config.to_json_dict(full=True)
    settings["engine_config"] = {
        # Where weights and keys lie changes no number.
        name: value
        for name, value in settings["engine_config"].items()
        if name not in (*SWITCHES, "overlap_decode")
    }
    prefix = None if sample.prefix is None else hashlib.sha256(sample.prefix.numpy().tobytes()).hexdigest()[:16]
    return {
        "config": settings,
        "method": {name: value for name, value in method.to_json_dict().items() if name not in ("source", "chosen")},
        "prompts": {str(change.chunk): change.prompt for change in sample.changes},
        "sample": sample.identity,
        "given frames": prefix,
        "weights": weights_fingerprint(config),
        "processes": ranks,
        "lossless": args.lossless,
        "include_prefix": args.include_prefix,
    }


def platform_of_run(device: torch.device) -> dict[str, Any]:
    """What the last bits of the numbers may depend on besides."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "torch": str(torch.__version__), "commit": commit()}


class Keeper:
    """Keeps the state of one run, on each of its ranks.

    Args:
        wish: keep it (True) or not; None keeps that of long runs.
        folder: where.
        run: ``identity_of_run``, with ``platform_of_run`` in it.
        parallel: the ranks.
        kept: an earlier process has kept it.
    """

    def __init__(
        self,
        wish: bool | None,
        folder: StateFolder,
        run: dict[str, Any],
        parallel: ContextParallel,
        kept: bool = False,
    ) -> None:
        self.wish = wish
        self.folder = folder
        self.run = run
        self.parallel = parallel
        self.kept = kept
        if parallel.is_first:
            folder.tidy()
        self._began = time.perf_counter()
        self._first: int | None = None
        self._last_end = self._last_took = 0.0

    def after(self, chunk: int, session: Session, writer: VideoWriter | None) -> None:
        """``chunk`` was drawn and written; ``writer`` on the first rank."""
        self._first = chunk if self._first is None else self._first
        if not self.parallel.from_first(lambda: self._due(chunk, session)):
            return
        began = time.perf_counter()
        state = {
            "run": self.run,
            "session": session.state(),
            "video": None if writer is None else asdict(writer.written),
        }
        if not self.kept and not self._announce(state):
            return
        try:
            self.folder.save(chunk, state)
        except OSError as error:
            logger.warning("the state behind chunk %d was not kept: %s", chunk, error)
        else:
            self.kept = True
            if writer is not None:
                writer.resumable = True
        self._last_end = time.perf_counter()
        self._last_took = self._last_end - began

    def _due(self, chunk: int, session: Session) -> bool:
        if self.wish is not None:
            return self.wish
        if not self.kept:
            chunks, done = session.progress.chunks, chunk + 1 - self._first
            if chunks is not None and (time.perf_counter() - self._began) / done * chunks < LONG_SECONDS:
                return False
        return time.perf_counter() - self._last_end >= self._last_took / SHARE

    def _announce(self, state: dict[str, Any]) -> bool:
        """Say what is kept; False where there is no room for two of it."""
        size, free = state_bytes(state["session"]), free_disk(self.folder.path)
        if 2 * size > free:
            logger.warning("no state is kept: two of %.1f MB have no room, %.1f MB are free", size / 1e6, free / 1e6)
            self.wish = False
            return False
        if self.parallel.is_first:
            logger.info("what --resume needs is kept in %s, %.1f MB", self.folder.path, size / 1e6)
        return True


def found_state(folder: StateFolder, run: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier process kept of the same run; None where it kept nothing.

    Raises:
        ValueError: it was another run, or is damaged; the message says what to do.
    """
    chunk = folder.newest()
    if chunk is None:
        return None
    state = folder.load(chunk)
    before, platform = dict(state["run"]), run["platform"]
    different = differences({**before, "platform": None}, {**run, "platform": None})
    if different:
        raise ValueError(f"{folder.path} is of another run: {'; '.join(different[:8])}; {folder.way_out}")
    for difference in differences(before["platform"], platform):
        logger.warning("the last bits may differ from those of an undisturbed run: %s", difference)
    return state


def written_before(state: dict[str, Any]) -> Written:
    """How much of the video was there."""
    return Written(**state["video"])
