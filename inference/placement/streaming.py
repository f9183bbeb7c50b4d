"""Transformer layers whose weights lie in host memory and pass through two slots on the device.

For cards that cannot hold the weights: while one layer computes, the next one's weights are copied beside it, so that
little is lost where a layer computes longer than its copy takes (docs/memory.md, "Streamed weights").

A layer's parameters lie one after the other in one piece of host memory, so that a layer is one copy. Layer i belongs
to slot i mod 2 for good: its parameters are views of the slot, and hold its values while it is the layer in there.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from inference.placement.host_memory import SideStream, host_tensor

# Room of a parameter in its layer's memory; matrix units want to begin at multiples of 16 bytes.
ALIGNMENT = 256
# CPU kernels treat the ends of a row that is not aligned to their vectors apart, which changes the last bit of sums.
VECTOR = 64


class StreamedLayers:
    """Iterates over layers, each with its weights on the device until the next one is asked for.

    Args:
        layers: loaded, frozen layers in host memory; their parameters are moved.
        device: where they compute.
    """

    def __init__(self, layers: nn.ModuleList, device: torch.device) -> None:
        self.layers = layers
        self.side = SideStream(device)
        self.slots = tuple(
            self.side.empty((max((layer_bytes(layer) for layer in layers[first::2]), default=0),), torch.uint8)
            for first in range(2)
        )
        self.host = [self._move(index, layer, device) for index, layer in enumerate(layers)]
        # Which layer each slot has, or will have after the copies asked for.
        self._held: list[int | None] = [None, None]
        self._ready: list[torch.cuda.Event | None] = [None, None]

    @property
    def device_bytes(self) -> int:
        """What the slots take on the device."""
        return sum(slot.nbytes for slot in self.slots)

    def __iter__(self) -> Iterator[nn.Module]:
        for index, layer in enumerate(self.layers):
            self._fetch(index)
            self.side.wait(self._ready[index % 2])
            # The other slot is free: of the layer before all is asked for that it computes. The first layer is fetched
            # again beside the last one, for the next forward.
            following = (index + 1) % len(self.layers)
            if following % 2 != index % 2:
                self._fetch(following)
            yield layer

    def _fetch(self, index: int) -> None:
        """Have the weights of a layer copied into its slot, where they are not in it."""
        slot = index % 2
        if self._held[slot] == index:
            return
        host = self.host[index]
        self.side.copy(self.slots[slot][: len(host)], host)
        self._held[slot], self._ready[slot] = index, self.side.mark()

    def _move(self, index: int, layer: nn.Module, device: torch.device) -> Tensor:
        """The weights of a layer in one piece of host memory; its parameters become views of its slot."""
        host = host_tensor((layer_bytes(layer),), torch.uint8, device)
        start = 0
        for module in layer.modules():
            for name, parameter in module.named_parameters(recurse=False):
                first = start + (_beside_vectors(parameter) if device.type == "cpu" else 0)
                piece = slice(first, first + parameter.nbytes)
                host[piece] = parameter.detach().contiguous().view(-1).view(torch.uint8)
                view = self.slots[index % 2][piece].view(parameter.dtype).view(parameter.shape)
                setattr(module, name, nn.Parameter(view, requires_grad=False))
                start += _room(parameter)
        return host


def layer_bytes(layer: nn.Module) -> int:
    """Bytes that a layer's parameters take, one after the other."""
    return sum(_room(parameter) for parameter in layer.parameters())


def _room(parameter: Tensor) -> int:
    return -(-(parameter.nbytes + VECTOR) // ALIGNMENT) * ALIGNMENT


def _beside_vectors(parameter: Tensor) -> int:
    """How far behind a vector's beginning ``parameter`` lies: weights mapped from a file lie anywhere, and are to
    compute in their slot just as they do where they are.
    """
    offset = parameter.data_ptr() % VECTOR
    return offset if offset % parameter.itemsize == 0 else 0
