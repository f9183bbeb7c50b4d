"""Parity of tiled encoding and decoding: layouts, blended latents, blended videos."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from inference.video.tiling import UNTILED, AxisLayout, Reduction, TileSpec, tiled_decode, tiled_encode
from inference.video.vae import ViTVAE
from scripts.parity.common import CheckResult, absolute_error
from scripts.parity.vae.files import TOLERANCE, GoldenFile, guarded, model_input

_AXES = "THW"


def check_file(golden: GoldenFile, _directory: Path) -> Iterator[CheckResult]:
    cases = golden.index.get("cases", {})
    if not cases:
        yield golden.failure(golden.stem, "the index lists no case")
        return
    index = golden.index
    try:
        vae = golden.vae(index["ddconfig"], index["model_type"], "state_dict/")
    except (RuntimeError, ValueError, KeyError) as error:
        yield golden.failure(golden.stem, f"no VAE can be built: {error}")
        return
    for case, entry in cases.items():
        yield from guarded(golden, case, _check_case(golden, vae, case, entry))


def _check_case(golden: GoldenFile, vae: ViTVAE, case: str, entry: dict) -> Iterator[CheckResult]:
    tiles = _tile_spec(entry["arguments"])
    reduction = Reduction(time=vae.vit_config.patch_length, space=vae.vit_config.patch_size)
    names = {short: f"{case}/{short}" for short in ("video_u8", "enc", "dec")}
    video, latents = golden.tensor(names["video_u8"]), golden.tensor(names["enc"])
    for short, key in (("video_u8", "video_shape"), ("enc", "enc_shape"), ("dec", "dec_shape")):
        yield golden.equal(case, key, list(golden.tensor(names[short]).shape), entry[key])
    layouts = {
        "layout_encode": tiles.encode_layout(video.shape, reduction),
        "layout_decode": tiles.decode_layout(latents.shape, reduction),
    }
    for key, axes in layouts.items():
        actual = {axis: _as_entry(layout) for axis, layout in zip(_AXES, axes, strict=True)}
        yield golden.equal(case, key, actual, entry[key])

    def encode(piece: torch.Tensor) -> torch.Tensor:
        return vae.encode(piece).mode()

    encoded = tiled_encode(encode, model_input(video), tiles, reduction)
    decoded = tiled_decode(vae.decode, latents, tiles, reduction)
    yield golden.absolute(case, "encode", encoded, names["enc"])
    yield golden.absolute(case, "decode", decoded, names["dec"])
    # How far tiling moves the result: shows that the untiled path is right as well.
    untiled = {
        "enc_vs_untiled": lambda: absolute_error(encode(model_input(video)), latents),
        "dec_vs_untiled": lambda: absolute_error(vae.decode(latents), golden.tensor(names["dec"])),
    }
    for key, measure in untiled.items():
        if key in entry.get("checks", {}):
            error = abs(measure() - entry["checks"][key])
            yield CheckResult(golden.family, case, key, error, 2 * TOLERANCE)


def _tile_spec(arguments: dict) -> TileSpec:
    # None stands for the model's own answer, which is no.
    tiled = bool(arguments["allow_spatial_tiling"])
    return TileSpec(
        length=arguments["tile_sample_min_length"],
        height=arguments["tile_sample_min_height"] if tiled else UNTILED,
        width=arguments["tile_sample_min_width"] if tiled else UNTILED,
        spatial_overlap=arguments["spatial_tile_overlap_factor"],
        temporal_overlap=arguments["temporal_tile_overlap_factor"],
    )


def _as_entry(layout: AxisLayout) -> dict:
    entry = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(layout).items()}
    return {**entry, "count": len(layout.starts)}
