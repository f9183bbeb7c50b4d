"""Where the rows of a KV cache lie: on the model's device, or in host memory with two layers at a time on the device.

A *row* is what one token left in one layer: keys and values (G, 2d). The cache says which token range a forward will
read and which it will write; where the tokens of the video lie among the rows is the cache's business.
Source: docs/memory.md, "Keys and values in host memory".
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.placement.host_memory import SideStream, host_tensor
from inference.reuse import State

Range = tuple[int, int]


class DeviceRows:
    """All layers on one device. ``memory`` (layers, tokens, G, 2d)."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device
        self.memory = torch.empty(0, dtype=dtype)

    def allocate(self, shape: tuple[int, int, int, int]) -> None:
        """Room for ``shape``; what was there is forgotten, its memory kept where it fits."""
        if tuple(self.memory.shape) != shape:
            self.memory = torch.empty(shape, dtype=self.dtype, device=self.device)

    @property
    def bytes(self) -> int:
        """Size of the memory held, all layers together."""
        return self.memory.nbytes

    def held(self) -> Iterator[Tensor]:
        """What lies on the device."""
        yield self.memory

    def prepare(self, read: Sequence[Range]) -> None:
        """A forward begins that will read these tokens of every layer, besides those that it writes."""
        return None

    def layer(self, layer: int) -> Tensor:
        """The rows (tokens, G, 2d) of a layer on the device, until another layer is asked for; to be written through
        ``write`` alone.
        """
        return self.memory[layer]

    def write(self, layer: int, start: int, kv: Tensor) -> None:
        """Replace the rows of a layer from ``start`` on by ``kv`` (m, G, 2d)."""
        self.layer(layer)[start : start + len(kv)] = kv

    @contextmanager
    def edit(self, layer: int, tokens: int, left: int | None = None) -> Iterator[Tensor]:
        """The first ``tokens`` rows of a layer on the device, to be changed inside the block; of them the first
        ``left`` mean something afterwards, or all.
        """
        yield self.memory[layer, :tokens]

    def move(self, layer: int, start: int, end: int, to: int) -> None:
        """Move the rows of a layer from ``start`` to ``end`` to the front, to begin at ``to``."""
        rows, by = self.memory[layer], start - to
        # No further than they move at once: so no range overlaps its target, and no second copy is needed.
        for place in range(start, end, by) if by else ():
            part = rows[place : min(place + by, end)]
            rows[place - by : place - by + len(part)] = part

    def state(self, tokens: int) -> State:
        """The first ``tokens`` rows of every layer, on the CPU."""
        return {"rows": self.memory[:, :tokens].cpu()}

    def restore(self, state: State) -> None:
        """Put back what ``state`` gave; after ``allocate``."""
        self.memory[:, : state["rows"].shape[1]].copy_(state["rows"])


@dataclass
class _Slot:
    """Room for one layer on the device; ``ready`` marks the copies that filled it with ``layer``, ``saved`` those that
    brought back to the host what was changed in it.
    """

    rows: Tensor
    layer: int | None = None
    ready: torch.cuda.Event | None = None
    saved: torch.cuda.Event | None = None


class HostRows(DeviceRows):
    """``memory`` is host memory. The layer being attended to and the next one have copies on the device.

    A forward asks for the layers in ascending order. While it computes with one, the next is fetched beside it, only
    the tokens that ``prepare`` named; what is written goes to the copy and back to the host, on a stream of its own,
    since the bus carries both directions at once. On a CPU the copies are made too, one after the other.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(dtype, device)
        self.slots: tuple[_Slot, ...] = ()
        self._side, self._back = SideStream(device), SideStream(device)
        self._read: Sequence[Range] = ()
        self._current: int | None = None

    def allocate(self, shape: tuple[int, int, int, int]) -> None:
        if tuple(self.memory.shape) != shape:
            self.memory = host_tensor(shape, self.dtype, self.device)
            self.slots = tuple(_Slot(self._side.empty(shape[1:], self.dtype)) for _ in range(2))
            for slot in self.slots:
                self._back.share(slot.rows)
        self._read = ((0, shape[1]),)
        self._forget()

    def held(self) -> Iterator[Tensor]:
        yield from (slot.rows for slot in self.slots)

    def prepare(self, read: Sequence[Range]) -> None:
        self._read = read
        self._forget()
        for layer in range(min(2, len(self.memory))):
            self._fetch(layer)

    def layer(self, layer: int) -> Tensor:
        slot = self.slots[layer % 2]
        if layer != self._current:
            if slot.layer != layer:
                self._fetch(layer)
            self._side.wait(slot.ready)
            self._current = layer
            following = layer + 1
            if following < len(self.memory) and self.slots[following % 2].layer != following:
                self._fetch(following)
        return slot.rows

    def write(self, layer: int, start: int, kv: Tensor) -> None:
        super().write(layer, start, kv)
        end = start + len(kv)
        self._save(layer, start, end)

    @contextmanager
    def edit(self, layer: int, tokens: int, left: int | None = None) -> Iterator[Tensor]:
        yield self._bring(layer, 0, tokens)
        self._save(layer, 0, tokens if left is None else left)

    def move(self, layer: int, start: int, end: int, to: int) -> None:
        self._bring(layer, start, end)
        self._save(layer, start, end, to)

    def state(self, tokens: int) -> State:
        self._back.finish()
        return super().state(tokens)

    def restore(self, state: State) -> None:
        self._back.finish()
        self._forget()
        super().restore(state)

    def _bring(self, layer: int, start: int, end: int) -> Tensor:
        """These rows of a layer in its slot, at their places there, where nothing else is then known to be."""
        self._forget()
        slot = self.slots[layer % 2]
        rows = slot.rows[start:end]
        self._side.after(slot.saved)
        self._side.copy(rows, self.memory[layer, start:end])
        self._side.wait(self._side.mark())
        return rows

    def _save(self, layer: int, start: int, end: int, to: int | None = None) -> None:
        """Have these rows of a layer copied from its slot back to the host, to begin there at ``to``."""
        slot, to = self.slots[layer % 2], start if to is None else to
        self._back.copy(self.memory[layer, to : to + end - start], slot.rows[start:end])
        slot.saved = self._back.mark()

    def _fetch(self, layer: int) -> None:
        slot = self.slots[layer % 2]
        # Of the layer in the slot so far, and of this one at the forward before, all has to be on the host.
        self._side.after(slot.saved)
        for start, end in self._read:
            self._side.copy(slot.rows[start:end], self.memory[layer, start:end])
        slot.layer, slot.ready = layer, self._side.mark()

    def _forget(self) -> None:
        """What the slots hold is no longer what the host has, or not of the tokens that are needed."""
        self._current = None
        for slot in self.slots:
            slot.layer = None


def without(ranges: Sequence[Range], taken: Sequence[Range]) -> list[Range]:
    """The tokens of ``ranges`` that are in none of ``taken``, as ascending ranges that do not touch."""
    edges = sorted({edge for some in (*ranges, *taken) for edge in some})
    wanted: list[Range] = []
    for start, end in itertools.pairwise(edges):
        inside = any(a <= start and end <= b for a, b in ranges) and not any(a <= start and end <= b for a, b in taken)
        if inside and wanted and wanted[-1][1] == start:
            wanted[-1] = (wanted[-1][0], end)
        elif inside:
            wanted.append((start, end))
    return wanted
