"""Models that lie in host memory and come to the device while they are used (docs/memory.md).

The tensors of the host stay where they are; a visit makes copies on the device and drops them. Nothing is copied back,
since nothing changes a model here, so a visit changes no number.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from inference.config import Switch

logger = logging.getLogger(__name__)

# Share of the free memory that may be planned with; the rest is for activations and for what the allocator wastes.
PLANNED_SHARE = 0.8


class Residency:
    """Where the tensors of ``module`` lie between uses; every use goes through :meth:`visit`.

    Args:
        module: frozen, in host memory.
        device: where it is used. With ``offload`` it is there during visits only, otherwise from now on.
    """

    def __init__(self, module: nn.Module, device: torch.device, *, offload: bool = False) -> None:
        self.module = module
        self.device = device
        self.offload = offload
        if not offload:
            for tensor in _tensors(module):
                tensor.data = tensor.data.to(device)

    def describe(self) -> str:
        """Where the module lies, in words."""
        return f"in host memory, on {self.device} while it is used" if self.offload else f"on {self.device}"

    @contextmanager
    def visit(self) -> Iterator[None]:
        """The module is on its device inside the block. Not to be nested, nor entered by two threads."""
        if not self.offload:
            yield
            return
        tensors = _tensors(self.module)
        at_home = [tensor.data for tensor in tensors]
        try:
            for tensor in tensors:
                tensor.data = tensor.data.to(self.device, copy=True)
            yield
        finally:
            for tensor, home in zip(tensors, at_home, strict=True):
                tensor.data = home
            if self.device.type == "cuda":
                # Otherwise torch keeps the memory for tensors of just these sizes.
                torch.cuda.empty_cache()


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once however many names it has."""
    return [*module.parameters(), *module.buffers()]


def module_bytes(module: nn.Module) -> int:
    """Bytes of the parameters and buffers of ``module``, on whatever device (meta too)."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(module))


def should_offload(needed: int, free: int) -> bool:
    """Whether ``needed`` bytes are too many for a device to hold all the time, of which ``free`` bytes are free."""
    return needed > PLANNED_SHARE * free


class MemoryBudget:
    """What the models of a run may take of a device's memory: first come, first served.

    Args:
        device: the device of the run.
        taken: bytes that it will need in any case, such as those of the transformer and of the KV cache.
        free: bytes that are free on it before anything is loaded; by default what is found.
    """

    def __init__(self, device: torch.device, taken: int, free: int | None = None) -> None:
        self.device = device
        self.taken = taken
        self.free = free_bytes(device) if free is None else free

    def place(self, name: str, module: nn.Module, device: torch.device, setting: Switch) -> Residency:
        """Put ``module`` on ``device``, for good or for visits: as ``setting`` says, or where "auto" finds it fits.

        ``name`` is what the log calls it. On a CPU nothing is moved, whatever the setting.
        """
        size = module_bytes(module)
        offload = device.type != "cpu" and self._too_large(size, device) if setting == "auto" else setting
        if device.type == "cpu":
            if offload:
                logger.info("the %s stays in host memory: it is used there", name)
            offload = False
        elif offload:
            logger.info("the %s (%.1f GB) is on the device only while it is used", name, size / 1e9)
        if device == self.device and not offload:
            self.taken += size
        return Residency(module, device, offload=offload)

    def _too_large(self, size: int, device: torch.device) -> bool:
        """Of another device than that of the run nothing is known to be taken."""
        free = self.free if device == self.device else free_bytes(device)
        taken = self.taken if device == self.device else 0
        return free is not None and should_offload(taken + size, free)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that are free on a GPU; None for other devices."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
