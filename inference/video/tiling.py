"""Encode and decode videos of any size in overlapping tiles, blended where they overlap.

Source: docs/conditioning.md, "Tiling", and the algorithm stated in tests/golden/tiling.json. The two
directions differ, as in the published code: encoding blends a tile against neighbours that are blended already,
decoding against neighbours as the model returned them. Tiles are counted by stride, so a video just as large as a tile
still gives two.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from inference.parallel.group import ALONE

# Larger than any video: a tile of this size along an axis means no tiling there (the published value).
UNTILED = 100_000

TileFunction = Callable[[torch.Tensor], torch.Tensor]
# Applies a tile function to every piece; results in the same order. Ranks may share the pieces.
TileMap = Callable[[TileFunction, Sequence[torch.Tensor]], list[torch.Tensor]]
_TIME, _ROWS, _COLUMNS = 2, 3, 4


@dataclass(frozen=True)
class TileSpec:
    """Tile sizes in frames and pixels, overlaps as fractions of a tile.

    Results have the size of the input only if ``tile * (1 - overlap)`` is a multiple of the VAE's reduction on every
    axis; ``misfits`` names the axes where it is not.
    """

    length: int
    height: int
    width: int
    spatial_overlap: float = 0.25
    temporal_overlap: float = 0.0

    def __post_init__(self) -> None:
        if min(self.length, self.height, self.width) < 1:
            raise ValueError(
                f"tile sizes must be positive, got {self.length} frames, {self.height}x{self.width} pixels"
            )
        for name, overlap in (("spatial", self.spatial_overlap), ("temporal", self.temporal_overlap)):
            if not 0 <= overlap < 1:
                raise ValueError(f"{name} tile overlap must be at least 0 and below 1, got {overlap}")

    def misfits(self, reduction: "Reduction") -> list[str]:
        """Axes whose stride or size is no multiple of the reduction, in words; empty if the tiles fit."""
        found = []
        for name, size, overlap, factor in self._axes(reduction):
            stride = int(size * (1 - overlap))
            if size != UNTILED and (size % factor or stride % factor or stride == 0):
                found.append(f"{name} tile {size} with stride {stride} is not in steps of {factor}")
        return found

    def encode_layout(self, video_shape: torch.Size, reduction: "Reduction") -> "list[AxisLayout]":
        """Layout per axis (time, rows, columns) for a video (N, C, T, H, W)."""
        axes = zip(video_shape[-3:], self._axes(reduction), strict=True)
        return [encode_axis(size, tile, overlap, factor) for size, (_, tile, overlap, factor) in axes]

    def decode_layout(self, latent_shape: torch.Size, reduction: "Reduction") -> "list[AxisLayout]":
        """Layout per axis (time, rows, columns) for latents (N, C, t, h, w)."""
        axes = zip(latent_shape[-3:], self._axes(reduction), strict=True)
        return [decode_axis(size, tile, overlap, factor) for size, (_, tile, overlap, factor) in axes]

    def _axes(self, reduction: "Reduction") -> list[tuple[str, int, float, int]]:
        return [
            ("time", self.length, self.temporal_overlap, reduction.time),
            ("height", self.height, self.spatial_overlap, reduction.space),
            ("width", self.width, self.spatial_overlap, reduction.space),
        ]


@dataclass(frozen=True)
class Reduction:
    """How many frames and pixels one latent stands for."""

    time: int = 4
    space: int = 8


@dataclass(frozen=True)
class AxisLayout:
    """How one axis is tiled. ``tile``, ``stride``, ``starts``, ``sizes`` are in units of the input (frames or pixels
    when encoding, latents when decoding), ``blend`` and ``keep`` in units of the result."""

    tile: int
    stride: int
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    blend: int
    keep: int

    def windows(self) -> Iterator[slice]:
        return (slice(start, start + size) for start, size in zip(self.starts, self.sizes, strict=True))


def encode_axis(size: int, tile: int, overlap: float, reduction: int) -> AxisLayout:
    """Layout of one axis of ``size`` frames or pixels."""
    return _axis(size, tile, overlap, result_tile=tile // reduction)


def decode_axis(size: int, tile: int, overlap: float, reduction: int) -> AxisLayout:
    """Layout of one axis of ``size`` latents; ``tile`` is in frames or pixels, as for encoding."""
    latent_tile = tile // reduction
    return _axis(size, latent_tile, overlap, result_tile=latent_tile * reduction)


def _axis(size: int, tile: int, overlap: float, result_tile: int) -> AxisLayout:
    stride = int(tile * (1 - overlap))
    if stride < 1:
        raise ValueError(
            f"a tile of {tile} with overlap {overlap} advances by {stride}; use larger tiles or less overlap"
        )
    starts = tuple(range(0, size, stride))
    sizes = tuple(min(tile, size - start) for start in starts)
    blend = int(result_tile * overlap)
    return AxisLayout(tile, stride, starts, sizes, blend, result_tile - blend)


def tiled_encode(
    encode_tile: TileFunction,
    video: torch.Tensor,
    tiles: TileSpec,
    reduction: Reduction | None = None,
    map_tiles: TileMap = ALONE.map,
) -> torch.Tensor:
    """Encode a video (N, C, T, H, W) tile by tile to latents (N, Z, t, h, w).

    ``encode_tile`` maps a piece of the video to its latents and may refuse it (a rest of two or three frames).
    """
    layouts = tiles.encode_layout(video.shape, reduction or Reduction())
    done = _each_tile(encode_tile, video, layouts, map_tiles)
    for position, tile in done.items():
        # Neighbours are read from `done` while it is replaced in order, so they are blended already.
        done[position] = _blended(tile, position, done, layouts)
    return _assemble(done, layouts)


def tiled_decode(
    decode_tile: TileFunction,
    latents: torch.Tensor,
    tiles: TileSpec,
    reduction: Reduction | None = None,
    map_tiles: TileMap = ALONE.map,
) -> torch.Tensor:
    """Decode latents (N, Z, t, h, w) tile by tile to a video (N, C, T, H, W).

    Whether a rest of one latent along time gives one frame or all of its frames is up to ``decode_tile``.
    """
    layouts = tiles.decode_layout(latents.shape, reduction or Reduction())
    raw = _each_tile(decode_tile, latents, layouts, map_tiles)
    return _assemble({position: _blended(tile, position, raw, layouts) for position, tile in raw.items()}, layouts)


def _each_tile(
    function: TileFunction, whole: torch.Tensor, layouts: list[AxisLayout], map_tiles: TileMap
) -> dict[tuple[int, int, int], torch.Tensor]:
    """``function`` of every tile of ``whole``, by position in the grid, in the order of ``_visit``."""
    windows = dict(_visit(layouts))
    results = map_tiles(function, [whole[window] for window in windows.values()])
    return dict(zip(windows, results, strict=True))


def _visit(layouts: list[AxisLayout]) -> Iterator[tuple[tuple[int, int, int], tuple[slice, ...]]]:
    """Positions in the tile grid with their windows, time first, then rows, then columns."""
    everything = slice(None)
    for t, frames in enumerate(layouts[0].windows()):
        for h, rows in enumerate(layouts[1].windows()):
            for w, columns in enumerate(layouts[2].windows()):
                yield (t, h, w), (everything, everything, frames, rows, columns)


def _blended(
    tile: torch.Tensor,
    position: tuple[int, int, int],
    neighbours: dict[tuple[int, int, int], torch.Tensor],
    layouts: list[AxisLayout],
) -> torch.Tensor:
    """A tile blended with its predecessors in time, above and to the left, in this order."""
    for axis, dim in enumerate((_TIME, _ROWS, _COLUMNS)):
        if position[axis] > 0:
            before = (*position[:axis], position[axis] - 1, *position[axis + 1 :])
            tile = blend(neighbours[before], tile, dim, layouts[axis].blend)
    return tile


def blend(predecessor: torch.Tensor, tile: torch.Tensor, dim: int, extent: int) -> torch.Tensor:
    """Fade from the end of ``predecessor`` into the start of ``tile`` along ``dim``; returns a new tile.

    Element x of the first ``extent`` (at most what both have) becomes
    ``predecessor[-extent + x] * (1 - x/extent) + tile[x] * (x/extent)``: element 0 is the predecessor's alone.
    Weighted in float32 and rounded once, as the published decode does.
    """
    extent = min(predecessor.shape[dim], tile.shape[dim], extent)
    if extent == 0:
        return tile
    working_type = torch.promote_types(tile.dtype, torch.float32)
    shape = [-1 if axis == dim else 1 for axis in range(tile.ndim)]
    share = (torch.arange(extent, dtype=torch.float64) / extent).reshape(shape)
    old_share, new_share = (1 - share).to(tile.device, working_type), share.to(tile.device, working_type)
    old = predecessor.narrow(dim, predecessor.shape[dim] - extent, extent)
    new = tile.narrow(dim, 0, extent)
    mixed = old.to(working_type) * old_share + new.to(working_type) * new_share
    rest = tile.narrow(dim, extent, tile.shape[dim] - extent)
    return torch.cat([mixed.to(tile.dtype), rest], dim=dim)


def _assemble(tiles: dict[tuple[int, int, int], torch.Tensor], layouts: list[AxisLayout]) -> torch.Tensor:
    """Cut each tile to what it keeps (the last ones may be shorter) and put the pieces side by side."""
    time, rows, columns = layouts
    frames = []
    for t in range(len(time.starts)):
        bands = []
        for h in range(len(rows.starts)):
            row = [tiles[t, h, w] for w in range(len(columns.starts))]
            cut = [tile[..., : time.keep, : rows.keep, : columns.keep] for tile in row]
            bands.append(torch.cat(cut, dim=_COLUMNS))
        frames.append(torch.cat(bands, dim=_ROWS))
    return torch.cat(frames, dim=_TIME)
