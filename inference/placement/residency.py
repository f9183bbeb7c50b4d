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


def place(name: str, module: nn.Module, device: torch.device, setting: Switch) -> Residency:
    """Put ``module`` on ``device``: for good, or where ``setting`` is true for visits.

    ``name`` is what the log calls it. On a CPU nothing is moved, whatever the setting. With "auto" it stays: on a GPU
    the plan of the run has decided before (``inference.memory.plan``).
    """
    if setting is not True:
        return Residency(module, device)
    if device.type == "cpu":
        logger.info("the %s stays in host memory: it is used there", name)
        return Residency(module, device)
    logger.info("the %s (%.1f GB) is on the device only while it is used", name, module_bytes(module) / 1e9)
    return Residency(module, device, offload=True)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that are free on a GPU; None for other devices."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
