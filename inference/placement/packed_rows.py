"""Rows of a KV cache in 8 or 4 bits, on the device or in host memory: one layer at a time is unpacked.

Source: docs/memory.md, "Keys and values in fewer bits"; the numbers themselves: ``packing``.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from inference.placement.kv_rows import DeviceRows, Range
from inference.placement.packing import Grid, grid_over, pack_rows, packed_row_bytes, unpack_rows
from inference.reuse import State


class PackedRows(DeviceRows):
    """Packs what is written and unpacks what is read; what a forward writes it also reads as it was computed.

    Args:
        stored: where packed rows lie, in bytes.
        bits: 8 or 4.
        block: tokens that share the grids of their keys, those of a chunk.
        dtype: of keys and values as they are written and read.
    """

    def __init__(self, stored: DeviceRows, bits: int, block: int, dtype: torch.dtype) -> None:
        super().__init__(dtype, stored.device)
        self.stored, self.bits, self.block = stored, bits, block
        # The layer being attended to, unpacked (tokens, G, 2d).
        self.unpacked = torch.empty(0, dtype=dtype)
        # Offsets and steps of the keys' channels, (layers, blocks, 2, G, d).
        self.grids = torch.empty(0)
        # Per layer: where blocks begin and end. Each has the grids numbered by its beginning (``_grid``).
        self._blocks: list[dict[int, int]] = []
        self._read: Sequence[Range] = ()
        self._current: int | None = None

    def allocate(self, shape: tuple[int, int, int, int]) -> None:
        layers, tokens, groups, width = shape
        self.stored.allocate((layers, tokens, groups, packed_row_bytes(self.bits, width // 2)))
        self.memory = self.stored.memory
        if tuple(self.unpacked.shape) != shape[1:] or len(self.grids) != layers:
            self.unpacked = torch.empty(shape[1:], dtype=self.dtype, device=self.device)
            # Of blocks that follow each other at most one is shorter than the others.
            blocks = -(-tokens // self.block)
            self.grids = torch.zeros(layers, blocks, 2, groups, width // 2, device=self.device)
        self._blocks = [{} for _ in range(layers)]
        self._read, self._current = ((0, tokens),), None

    @property
    def bytes(self) -> int:
        return self.stored.bytes + self.unpacked.nbytes + self.grids.nbytes

    def held(self) -> Iterator[Tensor]:
        yield from (self.unpacked, self.grids)
        yield from self.stored.held()

    def prepare(self, read: Sequence[Range]) -> None:
        self.stored.prepare(read)
        self._read, self._current = read, None

    def layer(self, layer: int) -> Tensor:
        packed = self.stored.layer(layer)
        if layer != self._current:
            for start, end in self._read:
                self._unpack(layer, packed, start, end)
            self._current = layer
        return self.unpacked

    def write(self, layer: int, start: int, kv: Tensor) -> None:
        rows = self.layer(layer)[start : start + len(kv)]
        rows.copy_(kv)
        self.stored.write(layer, start, self._pack(layer, start, rows))

    @contextmanager
    def edit(self, layer: int, tokens: int, left: int | None = None) -> Iterator[Tensor]:
        left = tokens if left is None else left
        self._current = None
        with self.stored.edit(layer, tokens, left) as packed:
            self._unpack(layer, packed, 0, tokens)
            rows = self.unpacked[:tokens]
            yield rows
            self._free(layer, 0, tokens)
            for start in range(0, left, self.block):
                end = min(start + self.block, left)
                packed[start:end] = self._pack(layer, start, rows[start:end])

    def move(self, layer: int, start: int, end: int, to: int) -> None:
        """As everywhere; whole blocks, whose codes and grids stay as they are."""
        self._current = None
        blocks = [(a, b) for a, b in sorted(self._blocks[layer].items()) if start <= a and b <= end]
        grids = [self._grid(layer, a).clone() for a, _ in blocks]
        self.stored.move(layer, start, end, to)
        self._free(layer, to, end)
        for (a, b), grid in zip(blocks, grids, strict=True):
            self._blocks[layer][a - start + to] = b - start + to
            self._grid(layer, a - start + to).copy_(grid)

    def state(self, tokens: int) -> State:
        return {"packed": self.stored.state(tokens), "grids": self.grids.cpu(), "blocks": list(map(dict, self._blocks))}

    def restore(self, state: State) -> None:
        self.stored.restore(state["packed"])
        self.grids.copy_(state["grids"])
        self._blocks, self._current = list(map(dict, state["blocks"])), None

    def _grid(self, layer: int, start: int) -> Tensor:
        """Offsets and steps (2, G, d) of the block that begins at ``start``."""
        return self.grids[layer, -(-start // self.block)]

    def _pack(self, layer: int, start: int, rows: Tensor) -> Tensor:
        """``rows`` (m, G, 2d) become the block that begins at ``start``; returns them packed."""
        self._free(layer, start, start + len(rows))
        self._blocks[layer][start] = start + len(rows)
        width = rows.shape[-1] // 2
        grid = grid_over(rows[..., :width], 0, self.bits)
        self._grid(layer, start).copy_(torch.cat(grid))
        packed = torch.empty(*rows.shape[:2], packed_row_bytes(self.bits, width), dtype=torch.uint8, device=rows.device)
        pack_rows(rows, grid, self.bits, packed)
        return packed

    def _unpack(self, layer: int, packed: Tensor, start: int, end: int) -> None:
        """The tokens from ``start`` to ``end`` that were ever written."""
        for a, b in self._blocks[layer].items():
            first, last = max(a, start), min(b, end)
            if first < last:
                offset, step = self._grid(layer, a)[:, None]
                unpack_rows(packed[first:last], Grid(offset, step), self.bits, self.unpacked[first:last])

    def _free(self, layer: int, start: int, end: int) -> None:
        """No block of a layer touches these tokens any more."""
        blocks = self._blocks[layer]
        self._blocks[layer] = {a: b for a, b in blocks.items() if b <= start or end <= a}
