"""Notices at once when another rank's process ends (docs/parallel.md, "When a rank dies").

A collective over NCCL that waits for a dead process keeps the device busy until a timeout, minutes later, and then
takes the process down with it, before the video is closed. So every rank has a connection to the first one on which
nothing is said until it leaves, and a thread that waits on it: the operating system closes the connection of a process
that ends, however it ends. The first rank tells the others whom it has lost.
"""

import logging
import threading
from contextlib import suppress
from datetime import timedelta

import torch
import torch.distributed as dist

logger = logging.getLogger(__name__)

FIRST = 0
# What is said on the connection: the number of a lost rank, or one of these.
DONE = -1
UNREACHABLE = -2  # some rank does not answer, nobody knows which
STOPPED = -3  # a rank was interrupted
# The connection is idle for as long as the video takes.
PATIENCE = timedelta(days=365)
# Between a failed exchange and the news of who has ended.
VERDICT_SECONDS = 2.0


class Lookout:
    """One per process; made by all ranks together. ``lost`` is the rank that has ended too early, ``UNREACHABLE``,
    ``STOPPED``, or None as long as all are there.
    """

    def __init__(self) -> None:
        self.lost: int | None = None
        self._rank = dist.get_rank()
        ranks = range(dist.get_world_size())
        self._peers = [rank for rank in ranks if rank != FIRST] if self._rank == FIRST else [FIRST]
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        self._lock = threading.Lock()
        self._verdict = threading.Event()
        # Daemons: where a run fails they wait on connections that nobody closes.
        self._threads = [threading.Thread(target=self._watch, args=(peer,), daemon=True) for peer in self._peers]
        for thread in self._threads:
            thread.start()

    def wait_for_verdict(self) -> None:
        """Give the news of who has ended the time to arrive."""
        self._verdict.wait(VERDICT_SECONDS)

    def verdict(self) -> str:
        """What became of the other ranks, in words."""
        if self.lost is None or self.lost == UNREACHABLE:
            return "one of the other ranks does not answer: it hangs, or the network between them fails"
        return "another rank was stopped" if self.lost == STOPPED else f"rank {self.lost} has ended"

    def finish(self) -> None:
        """This rank has done its part; returns when all have. The first rank's end of the run is everybody's."""
        if self._rank == FIRST:
            self._join()
            self._tell(DONE)
        else:
            self._tell(DONE)
            self._join()

    def leave(self, word: int) -> None:
        """This rank ends before the run is done; the others need not wait for its process to be gone."""
        if self.lost is None:
            self._tell(word)

    def _watch(self, peer: int) -> None:
        word = torch.empty(1, dtype=torch.int64)
        try:
            dist.recv(word, src=peer, group=self._group)
        except RuntimeError:
            self._report(peer)
            return
        if word.item() != DONE:
            self._report(int(word.item()))

    def _report(self, lost: int) -> None:
        with self._lock:
            if self.lost is not None:
                return
            self.lost = lost
        if self._rank == FIRST:
            self._tell(lost)
        self._verdict.set()
        # Ends what waits for the lost rank on the device; over gloo nothing does.
        dist.group.WORLD.abort()
        # Here, since what the rank is in the middle of may take a while to end; and last, since an interrupted main
        # thread may hold the lock of a log handler.
        if lost != STOPPED:
            logger.error("%s: the run cannot go on", self.verdict())

    def _tell(self, word: int) -> None:
        for peer in self._peers:
            # Whoever cannot be told has ended or is about to.
            with suppress(RuntimeError):
                dist.send(torch.tensor([word]), dst=peer, group=self._group)

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()
