"""Parity of the small things around the VAE: uint8 tables, norms, position resizing, posterior, bfloat16."""

import re
from collections.abc import Iterator
from pathlib import Path

import torch

from inference.video.codec import from_uint8, to_uint8
from inference.video.vae import DiagonalGaussianPosterior
from inference.video.vit_blocks import attention_norm, resize_position_embedding
from scripts.parity.common import RELATIVE_TOLERANCE, CheckResult, absolute_error
from scripts.parity.vae.files import TOLERANCE, GoldenFile, guarded, model_input

_ROTARY_NOTE = "dead code in the reference (use_rope cannot run): computed here, not in the model"
_ROTARY_REFERENCE_GRID = (4, 16, 16)
_REFERENCE_STEM = "vae_real_like"
# Two independent roundings of one computation; each was measured at the size the index states.
_BFLOAT16_MARGIN = 1.5
# The index states the distances in full precision.
_STATED_TOLERANCE = 1e-9


def check_file(golden: GoldenFile, directory: Path) -> Iterator[CheckResult]:
    parts = {
        "uint8/": _check_uint8,
        "input/": _check_input,
        "attn_norm/": _check_attention_norm,
        "pos/": _check_positions,
        "posterior/": _check_posterior,
        "rope/": _check_rotary,
    }
    for prefix, part in parts.items():
        if golden.names(prefix):
            yield from guarded(golden, prefix.rstrip("/"), part(golden))
    if golden.names("bf16/"):
        yield from guarded(golden, "bf16", _check_bfloat16(golden, directory))


def _check_uint8(golden: GoldenFile) -> Iterator[CheckResult]:
    for kind in ("f32", "bf16"):
        actual, expected = to_uint8(golden.tensor(f"uint8/{kind}_in")), golden.tensor(f"uint8/{kind}_out")
        yield CheckResult(golden.family, "uint8", kind, absolute_error(actual, expected), 0.0)
    values = golden.tensor("uint8/bf16_in")
    steps = (to_uint8(values).int() - to_uint8(values.float()).int()).abs()
    in_range = values.float().abs() <= 1
    actual_counts = {
        "differ": int((steps > 0).sum()),
        "of": values.numel(),
        "differ_in_range": int((steps[in_range] > 0).sum()),
        "max": int(steps.max()),
    }
    yield golden.equal("uint8", "bf16 against float32", actual_counts, golden.index["uint8_bf16_vs_f32"])


def _check_input(golden: GoldenFile) -> Iterator[CheckResult]:
    table = from_uint8(torch.arange(256, dtype=torch.uint8))
    for kind, actual in (("f32", table), ("bf16", table.bfloat16())):
        yield CheckResult(golden.family, "input", kind, absolute_error(actual, golden.tensor(f"input/{kind}")), 0.0)


def _check_attention_norm(golden: GoldenFile) -> Iterator[CheckResult]:
    x, expected = golden.tensor("attn_norm/in"), golden.tensor("attn_norm/out")
    error = (attention_norm(x) - expected).abs()
    if golden.device.type != "cpu":
        # Some rows hardly deviate from their mean. The last bit of a mean is up to the order of the sum, and is divided
        # by that deviation: a constant row is -0.006 in the data and 0 where the mean is exact.
        deviation = x.std(dim=-1, correction=0, keepdim=True) + 1e-5
        error = error - 2 * torch.finfo(x.dtype).eps * x.mean(dim=-1, keepdim=True).abs() / deviation
    yield CheckResult(golden.family, "attn_norm", "out", max(error.max().item(), 0.0), TOLERANCE)


def _check_positions(golden: GoldenFile) -> Iterator[CheckResult]:
    native = _native_grid(golden.index["tensors"])
    for name in golden.names("pos/"):
        if name == "pos/in":
            continue
        grid = tuple(int(size) for size in name.removeprefix("pos/").split("x"))
        actual = resize_position_embedding(golden.tensor("pos/in"), native, grid)
        yield golden.absolute("pos", name, actual, name)


def _native_grid(listed: dict) -> tuple[int, int, int]:
    """The grid of ``pos/in``, which the index tells only in the words of the resized ones."""
    for name, entry in listed.items():
        if name.startswith("pos/") and (
            found := re.search(r"grid T,H,W = (\d+),(\d+),(\d+)", entry.get("meaning", ""))
        ):
            return tuple(int(size) for size in found.groups())
    raise KeyError("grid of pos/in in the descriptions of pos/*")


def _check_posterior(golden: GoldenFile) -> Iterator[CheckResult]:
    posterior = DiagonalGaussianPosterior(golden.tensor("posterior/moments"))
    # Relative to each element: log variances reach from -30 to 20, so variances from 1e-13 to 5e8.
    for quantity in ("mean", "logvar", "std", "var"):
        actual, expected = getattr(posterior, quantity), golden.tensor(f"posterior/{quantity}")
        if actual.shape != expected.shape:
            raise ValueError(f"{quantity}: shape {tuple(expected.shape)} is stored, the moments give {actual.shape}")
        error = ((actual - expected).abs() / expected.abs().clamp_min(1e-30)).max().item()
        yield CheckResult(golden.family, "posterior", quantity, error, RELATIVE_TOLERANCE)


def _check_rotary(golden: GoldenFile) -> Iterator[CheckResult]:
    rotated = golden.tensor("rope/rot_in")
    for name in golden.names("rope/"):
        if not (found := re.fullmatch(r"rope/(\d+)x(\d+)x(\d+)_dim(\d+)/sin", name)):
            continue
        *grid, width = (int(number) for number in found.groups())
        angles = _rotary_angles(grid, width).to(golden.device)
        for kind, table in (("sin", angles.sin()), ("cos", angles.cos())):
            error = absolute_error(table, golden.tensor(name.removesuffix("sin") + kind))
            yield CheckResult(
                golden.family, "rope", f"{name.removesuffix('sin')}{kind}", error, TOLERANCE, _ROTARY_NOTE
            )
        if rotated.shape[-2:] == angles.shape:
            actual = rotated * angles.cos() + _turned(rotated) * angles.sin()
            error = absolute_error(actual, golden.tensor("rope/rot_out"))
            yield CheckResult(golden.family, "rope", "rot_out", error, TOLERANCE, _ROTARY_NOTE)


def _rotary_angles(grid: list[int], width: int) -> torch.Tensor:
    """Angles (tokens, 6 * (width // 6)) (docs/conditioning.md, "VAE blocks")."""
    count = width // 6
    frequencies = 10000.0 ** (-torch.arange(count, dtype=torch.float64) / count)
    positions = []
    for axis, (size, reference) in enumerate(zip(grid, _ROTARY_REFERENCE_GRID, strict=True)):
        steps = torch.arange(size, dtype=torch.float64) - (0 if axis == 0 else (size - 1) / 2)
        positions.append(steps / size * reference)
    mesh = torch.stack(torch.meshgrid(*positions, indexing="ij"), dim=-1).reshape(-1, 3, 1)
    return (mesh * frequencies).flatten(1).repeat_interleave(2, dim=1).float()


def _turned(x: torch.Tensor) -> torch.Tensor:
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.stack([-second, first], dim=-1).flatten(-2)


def _check_bfloat16(golden: GoldenFile, directory: Path) -> Iterator[CheckResult]:
    """Distances to the float32 results of the published-like model: the stored ones, and ours."""
    if not all((directory / f"{_REFERENCE_STEM}.{suffix}").is_file() for suffix in ("json", "safetensors")):
        yield golden.failure("bf16", f"the float32 results, {_REFERENCE_STEM}, are not in the same folder")
        return
    reference = GoldenFile(golden.family, directory, _REFERENCE_STEM, golden.device)
    ((name, variant),) = reference.index["variants"].items()
    arguments = variant["ddconfig"], variant["model_type"], variant["state_dict_prefix"]
    vae = reference.vae(*arguments, dtype=torch.bfloat16)
    for case, stated in golden.index["bf16_vs_float32"].items():
        exact = {quantity: reference.tensor(f"{name}/{case}/{quantity}") for quantity in ("latent", "decoded")}
        video = model_input(reference.tensor(f"{name}/{case}/video_u8"))
        ours = {"latent": vae.encode(video).mode(), "decoded": vae.decode(exact["latent"])}
        for quantity, distances in stated.items():
            stored = golden.tensor(f"bf16/{case}/{quantity}")
            for measure, value in _distances(stored, exact[quantity]).items():
                error = abs(value - distances[measure])
                yield CheckResult(
                    golden.family, f"bf16/{case}", f"stored {quantity} {measure}", error, _STATED_TOLERANCE
                )
            if ours[quantity].dtype != torch.bfloat16:
                yield golden.failure(f"bf16/{case}", f"{quantity} is {ours[quantity].dtype}")
            error = _distances(ours[quantity], exact[quantity])["rms_rel"]
            limit = _BFLOAT16_MARGIN * distances["rms_rel"]
            yield CheckResult(golden.family, f"bf16/{case}", f"{quantity} rms to float32", error, limit)


def _distances(actual: torch.Tensor, exact: torch.Tensor) -> dict[str, float]:
    if actual.shape != exact.shape:
        raise ValueError(f"shape {tuple(actual.shape)} against {tuple(exact.shape)}")
    difference, exact = (actual.double() - exact.double()).abs(), exact.double()
    return {
        "max_abs": difference.max().item(),
        "mean_abs": difference.mean().item(),
        "rel_to_max": (difference.max() / exact.abs().max()).item(),
        "rms_rel": (difference.square().mean() / exact.square().mean()).sqrt().item(),
    }
