"""Host memory that a GPU reads and writes by itself, while it computes (docs/memory.md, "Host memory")."""

import logging
import math
import mmap
import weakref
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def host_tensor(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory on the host; page-locked where ``device``, which will exchange it, is a GPU.

    Where the system does not lock so much, the memory stays ordinary: slower, and nothing else.
    """
    size = math.prod(shape) * dtype.itemsize
    # torch's own pinned memory comes in powers of two: up to twice as much as is asked for.
    memory = _lockable(size) if device.type == "cuda" and size else torch.empty(size, dtype=torch.uint8)
    if device.type == "cuda" and size:
        _lock(memory, device)
    return memory.view(dtype).view(*shape)


def _lockable(size: int) -> Tensor:
    """Memory that begins with a page and shares none: pages are locked whole, and none can be locked twice."""
    memory = torch.empty(size + 2 * mmap.PAGESIZE, dtype=torch.uint8)
    start = -memory.data_ptr() % mmap.PAGESIZE
    return memory[start : start + size]


def _lock(memory: Tensor, device: torch.device) -> None:
    runtime, address = torch.cuda.cudart(), memory.data_ptr()
    pages = -(-memory.numel() // mmap.PAGESIZE)
    error = int(runtime.cudaHostRegister(address, pages * mmap.PAGESIZE, 0))
    if error:
        _forget_error(device)
        logger.warning(
            "%.1f GB of host memory could not be locked (CUDA error %d): copies to the GPU will wait for each other; "
            "see `ulimit -l`",
            *(memory.numel() / 1e9, error),
        )
        return
    unlock = weakref.finalize(memory.untyped_storage(), _unlock, address, device)
    unlock.atexit = False  # the system does that itself, and CUDA may be gone by then


def _unlock(address: int, device: torch.device) -> None:
    torch.cuda.synchronize(device)  # copies may still be under way
    torch.cuda.cudart().cudaHostUnregister(address)


def _forget_error(device: torch.device) -> None:
    """CUDA keeps the last error until it is asked, and torch asks after every kernel: let one of no use be told."""
    with suppress(RuntimeError):
        torch.empty(1, device=device).fill_(0)


class SideStream:
    """Copies beside the computation on a GPU; on other devices they are made at once.

    Args:
        device: where the computation runs, on its current stream.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory on the device that both the computation and this stream use."""
        memory = torch.empty(tuple(shape), dtype=dtype, device=self.device)
        self.share(memory)
        return memory

    def share(self, memory: Tensor) -> None:
        """Memory of the device that this stream uses too is not given away before it has."""
        if self.stream is not None:
            memory.record_stream(self.stream)

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copy once everything is done that was asked of the computation, and of this stream, so far."""
        if self.stream is None:
            target.copy_(source)
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)

    def after(self, mark: torch.cuda.Event | None) -> None:
        """Copies asked for from now on are made after those before ``mark``, which is another side stream's."""
        if self.stream is not None and mark is not None:
            self.stream.wait_event(mark)

    def mark(self) -> torch.cuda.Event | None:
        """The point up to which copies have been asked for, for ``wait``."""
        return None if self.stream is None else self.stream.record_event()

    def finish(self) -> None:
        """Return when all copies asked for so far are made."""
        if self.stream is not None:
            self.stream.synchronize()

    def wait(self, mark: torch.cuda.Event | None) -> None:
        """What is computed from now on sees the copies made before ``mark``."""
        if mark is not None:
            torch.cuda.current_stream(self.device).wait_event(mark)
