"""Keys and values in 8 or 4 bits: codes on an even grid between the smallest and the largest value.

The grid of a key's channel spans the tokens of a block, that of a token's values its own channels: channels of keys
differ much and stay as they are over tokens, values have no such order (KIVI, arXiv 2402.02750). What it costs, and
what storing keys before their rotation would gain (KVQuant, arXiv 2401.18079): docs/memory.md, "Keys and values in
fewer bits". A packed row is ``uint8``: the codes, then the values' offset and step, float16.

Shape letters: M tokens, G key/value groups, d head width, R bytes of a packed row.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Rows that are packed or unpacked at once: their float32 copies are all that is needed besides.
BLOCK_ROWS = 2048
HALF_MOST = torch.finfo(torch.float16).max
HALF_BYTES = 2
GRID_BYTES = 2 * HALF_BYTES


class Grid(NamedTuple):
    """Codes ``0, 1, ...`` stand for ``offset + code * step``; both broadcast against what they are the grid of."""

    offset: Tensor
    step: Tensor


def packed_row_bytes(bits: int, head_width: int) -> int:
    """R: what keys and values of one token in one group take."""
    return 2 * head_width * bits // 8 + GRID_BYTES


def grid_over(values: Tensor, dim: int, bits: int) -> Grid:
    """The grid from the smallest to the largest of ``values`` along ``dim``, which stays with size 1; float32."""
    least, most = torch.aminmax(values, dim=dim, keepdim=True)
    return Grid(least.float(), (most.float() - least.float()) / (2**bits - 1))


def half_grid(grid: Grid) -> Grid:
    """The same in float16, in which it is stored."""
    return Grid(*(part.clamp(-HALF_MOST, HALF_MOST).half() for part in grid))


def encode(values: Tensor, grid: Grid, bits: int) -> Tensor:
    """The nearest codes, uint8."""
    step = grid.step.float()
    inverse = torch.where(step > 0, 1 / step, 0.0)
    codes = (values - grid.offset.float()).mul_(inverse).round_()
    return codes.clamp_(0, 2**bits - 1).to(torch.uint8)


def decode(codes: Tensor, grid: Grid) -> Tensor:
    """What ``codes`` stand for, float32."""
    return codes.float().mul_(grid.step.float()).add_(grid.offset.float())


def pack_rows(kv: Tensor, key_grid: Grid, bits: int, out: Tensor) -> None:
    """Keys and values ``kv`` (M, G, 2d) into ``out`` (M, G, R); ``key_grid`` (1, G, d)."""
    width = kv.shape[-1] // 2
    for rows, packed in zip(kv.split(BLOCK_ROWS), out.split(BLOCK_ROWS), strict=True):
        value_grid = half_grid(grid_over(rows[..., width:], -1, bits))
        codes, grid = packed[..., :-GRID_BYTES], packed[..., -GRID_BYTES:].view(torch.float16)
        grid.copy_(torch.cat(value_grid, dim=-1))
        codes[..., :width] = encode(rows[..., :width], key_grid, bits)
        if bits == 8:
            codes[..., width:] = encode(rows[..., width:], value_grid, bits)
        else:
            codes |= encode(rows[..., width:], value_grid, bits) << 4


def unpack_rows(packed: Tensor, key_grid: Grid, bits: int, out: Tensor) -> None:
    """The reverse: ``packed`` (M, G, R) into ``out`` (M, G, 2d)."""
    width = out.shape[-1] // 2
    for rows, target in zip(packed.split(BLOCK_ROWS), out.split(BLOCK_ROWS), strict=True):
        codes, grid = rows[..., :-GRID_BYTES], rows[..., -GRID_BYTES:].view(torch.float16)
        keys, values = (codes[..., :width], codes[..., width:]) if bits == 8 else (codes & 15, codes >> 4)
        target[..., :width] = decode(keys, key_grid)
        target[..., width:] = decode(values, Grid(grid[..., :1], grid[..., 1:]))
