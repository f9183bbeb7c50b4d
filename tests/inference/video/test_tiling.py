"""Tiling against reference data, against element-by-element blending, and its properties."""

import itertools
import json
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file

from inference.video.tiling import (
    UNTILED,
    AxisLayout,
    Reduction,
    TileSpec,
    blend,
    decode_axis,
    encode_axis,
    tiled_decode,
    tiled_encode,
)
from inference.video.vae import ViTVAE
from tests.paths import GOLDEN

INDEX = json.loads((GOLDEN / "tiling.json").read_text(encoding="utf-8"))
CASES = INDEX["cases"]
SMALL = Reduction(time=2, space=2)


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "tiling.safetensors")


@pytest.fixture(scope="module")
def vae(tensors: dict[str, torch.Tensor]) -> ViTVAE:
    vae = ViTVAE(ddconfig=INDEX["ddconfig"], model_type=INDEX["model_type"])
    prefix = "state_dict/"
    vae.load_state_dict({k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)})
    return vae.eval().requires_grad_(False)


def spec_of(case: str) -> TileSpec:
    arguments = CASES[case]["arguments"]
    return TileSpec(
        length=arguments["tile_sample_min_length"],
        height=arguments["tile_sample_min_height"] if arguments["allow_spatial_tiling"] else UNTILED,
        width=arguments["tile_sample_min_width"] if arguments["allow_spatial_tiling"] else UNTILED,
        spatial_overlap=arguments["spatial_tile_overlap_factor"],
        temporal_overlap=arguments["temporal_tile_overlap_factor"],
    )


@pytest.mark.parametrize("case", CASES)
def test_reference_layout(case: str) -> None:
    entry, tiles = CASES[case], spec_of(case)
    for key, layouts in (
        ("layout_encode", tiles.encode_layout(entry["video_shape"], Reduction())),
        ("layout_decode", tiles.decode_layout(entry["enc_shape"], Reduction())),
    ):
        for axis, layout in zip("THW", layouts, strict=True):
            expected = entry[key][axis]
            starts, sizes = tuple(expected["starts"]), tuple(expected["sizes"])
            assert len(starts) == expected["count"]
            numbers = (expected["blend"], expected["keep"])
            assert layout == AxisLayout(expected["tile"], expected["stride"], starts, sizes, *numbers), (key, axis)


@pytest.mark.parametrize("case", CASES)
def test_reference_case(vae: ViTVAE, tensors: dict[str, torch.Tensor], case: str) -> None:
    tiles = spec_of(case)
    video = tensors[f"{case}/video_u8"].float() / 127.5 - 1
    encoded = tiled_encode(lambda tile: vae.encode(tile).mode(), video, tiles)
    torch.testing.assert_close(encoded, tensors[f"{case}/enc"], atol=2e-5, rtol=0)
    decoded = tiled_decode(vae.decode, tensors[f"{case}/enc"], tiles)
    torch.testing.assert_close(decoded, tensors[f"{case}/dec"], atol=2e-5, rtol=0)


def test_published_layout_of_a_720p_clip() -> None:
    tiles = TileSpec(length=12, height=256, width=256)
    time, rows, columns = tiles.encode_layout((1, 3, 32, 720, 1280), Reduction())
    assert time.sizes == (12, 12, 8)
    assert (rows.stride, rows.blend, rows.keep, rows.sizes) == (192, 8, 24, (256, 256, 256, 144))
    assert len(columns.starts) == 7
    time, rows, _ = tiles.decode_layout((1, 16, 8, 90, 160), Reduction())
    assert time.sizes == (3, 3, 2)
    assert (rows.stride, rows.blend, rows.keep) == (24, 64, 192)


# --- a small stand-in for a VAE, whose result depends on the whole tile -------------------------------------------


def shrink(tile: torch.Tensor) -> torch.Tensor:
    n, c, t, h, w = tile.shape
    whole = tile[:, :, : t // 2 * 2, : h // 2 * 2, : w // 2 * 2]
    means = whole.reshape(n, c, t // 2, 2, h // 2, 2, w // 2, 2).mean(dim=(3, 5, 7))
    return means * (1 + tile.mean()) + tile.shape[-1] / 7


def grow(tile: torch.Tensor) -> torch.Tensor:
    bigger = tile.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    return bigger * (1 + tile.mean()) + tile.shape[-1] / 7


def plain_tiled(
    run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, layouts: list[AxisLayout], *, in_place: bool
) -> torch.Tensor:
    """The stated algorithm, element by element: ``in_place`` for encoding."""
    grid = list(itertools.product(*(range(len(layout.starts)) for layout in layouts)))

    def window(position: tuple[int, int, int]) -> torch.Tensor:
        piece = x
        for axis, (layout, number) in enumerate(zip(layouts, position, strict=True)):
            piece = piece.narrow(axis + 2, layout.starts[number], layout.sizes[number])
        return piece

    raw = {position: run(window(position)) for position in grid}
    blended = {position: tile.clone() for position, tile in raw.items()}
    for position in grid:
        tile = blended[position]
        for axis, layout in enumerate(layouts):
            before = tuple(number - (axis == place) for place, number in enumerate(position))
            if before not in raw:
                continue
            other = (blended if in_place else raw)[before]
            size = other.shape[axis + 2]
            extent = min(size, tile.shape[axis + 2], layout.blend)
            for place in range(extent):
                old, new = other.select(axis + 2, size - extent + place), tile.select(axis + 2, place)
                new.copy_(old * (1 - place / extent) + new * (place / extent))
    pieces = {p: tile[:, :, : layouts[0].keep, : layouts[1].keep, : layouts[2].keep] for p, tile in blended.items()}
    ends = [max(p[axis] for p in grid) + 1 for axis in range(3)]
    rows = {
        (t, h): torch.cat([pieces[t, h, w] for w in range(ends[2])], 4) for t in range(ends[0]) for h in range(ends[1])
    }
    return torch.cat([torch.cat([rows[t, h] for h in range(ends[1])], 3) for t in range(ends[0])], 2)


@pytest.mark.parametrize(
    ("tiles", "shape"),
    [
        (TileSpec(4, 8, 8), (1, 2, 8, 14, 18)),
        (TileSpec(8, 8, 16, temporal_overlap=0.25), (2, 1, 20, 8, 30)),
        (TileSpec(8, 8, 8, spatial_overlap=0.5, temporal_overlap=0.5), (1, 1, 12, 20, 12)),
        (TileSpec(4, 12, 8), (1, 1, 6, 22, 10)),
        (TileSpec(4, UNTILED, UNTILED), (1, 2, 10, 6, 8)),
    ],
    ids=str,
)
def test_equals_element_by_element_blending(tiles: TileSpec, shape: tuple[int, ...]) -> None:
    video = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    layouts = tiles.encode_layout(video.shape, SMALL)
    latents = tiled_encode(shrink, video, tiles, SMALL)
    torch.testing.assert_close(latents, plain_tiled(shrink, video, layouts, in_place=True))
    layouts = tiles.decode_layout(latents.shape, SMALL)
    decoded = tiled_decode(grow, latents, tiles, SMALL)
    torch.testing.assert_close(decoded, plain_tiled(grow, latents, layouts, in_place=False))
    if not tiles.misfits(SMALL):
        assert latents.shape[2:] == tuple(size // 2 for size in shape[2:])
        assert decoded.shape == video.shape


def test_encode_and_decode_blend_in_different_order() -> None:
    tiles = TileSpec(4, 8, 8, spatial_overlap=0.5)
    video = torch.randn(1, 1, 4, 16, 16, generator=torch.Generator().manual_seed(4))
    layouts = tiles.encode_layout(video.shape, SMALL)
    encoded = tiled_encode(shrink, video, tiles, SMALL)
    assert (encoded - plain_tiled(shrink, video, layouts, in_place=False)).abs().max() > 0.01
    latents = torch.randn(1, 1, 2, 8, 8, generator=torch.Generator().manual_seed(5))
    layouts = tiles.decode_layout(latents.shape, SMALL)
    decoded = tiled_decode(grow, latents, tiles, SMALL)
    assert (decoded - plain_tiled(grow, latents, layouts, in_place=True)).abs().max() > 0.01


def test_a_tile_that_covers_everything_equals_no_tiling(vae: ViTVAE) -> None:
    video = torch.rand(1, 3, 12, 40, 48, generator=torch.Generator().manual_seed(6)) * 2 - 1
    for tiles in (TileSpec(12, UNTILED, UNTILED), TileSpec(32, 128, 128)):
        latents = tiled_encode(lambda tile: vae.encode(tile).mode(), video, tiles)
        assert torch.equal(latents, vae.encode(video).mode())
        assert torch.equal(tiled_decode(vae.decode, latents, tiles), vae.decode(latents))


def test_tiles_that_see_nothing_but_themselves_leave_no_seam() -> None:
    """Where every tile says the same of a place, blending changes nothing."""
    video = torch.randn(1, 1, 8, 24, 40, generator=torch.Generator().manual_seed(7))

    def plain_means(tile: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool3d(tile, 2)

    tiled = tiled_encode(plain_means, video, TileSpec(4, 16, 8), SMALL)
    torch.testing.assert_close(tiled, plain_means(video))


def test_blend_starts_with_the_predecessor_alone() -> None:
    old, new = torch.full((1, 1, 1, 1, 6), 10.0), torch.zeros(1, 1, 1, 1, 5)
    assert blend(old, new, 4, 4).flatten().tolist() == [10.0, 7.5, 5.0, 2.5, 0.0]
    assert blend(old, new, 4, 100).flatten().tolist() == pytest.approx([10, 8, 6, 4, 2])
    assert torch.equal(blend(old, new, 4, 0), new)
    assert new.abs().max() == 0, "the tile itself must stay as it was"


def test_blend_rounds_bfloat16_once() -> None:
    generator = torch.Generator().manual_seed(8)
    old, new = (torch.randn(1, 1, 1, 1, 48, generator=generator).bfloat16() for _ in range(2))
    exact = blend(old.double(), new.double(), 4, 48)
    actual = blend(old, new, 4, 48)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual, exact.bfloat16(), atol=1e-6, rtol=0)


def test_tiles_that_do_not_fit_are_named() -> None:
    assert TileSpec(12, 256, 256).misfits(Reduction()) == []
    assert TileSpec(12, UNTILED, UNTILED).misfits(Reduction()) == []
    assert TileSpec(12, 48, 32).misfits(Reduction()) == ["height tile 48 with stride 36 is not in steps of 8"]
    assert len(TileSpec(10, 48, 40).misfits(Reduction())) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"length": 0}, "0 frames"),
        ({"width": -8}, "256x-8"),
        ({"spatial_overlap": 1.0}, "spatial.*1.0"),
        ({"temporal_overlap": -0.1}, "temporal.*-0.1"),
    ],
)
def test_impossible_tiles_are_refused(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TileSpec(**{"length": 12, "height": 256, "width": 256, **arguments})


def test_a_stride_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tile of 1 with overlap 0\.5"):
        decode_axis(size=4, tile=8, overlap=0.5, reduction=8)
    assert encode_axis(size=4, tile=8, overlap=0.5, reduction=8).starts == (0,)
