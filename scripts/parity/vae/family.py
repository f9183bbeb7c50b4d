"""Parity of the autoencoder: ``vae_*`` (one file per group of models), ``tiling*`` and ``misc*``.

What the data state but no check can use: seeds, measurements of other implementations (``agreement``, ``sensitivity``,
the ``*_if_neighbours_*`` of tiling), and ``failures``, which are messages of another program; our own refusals are
tested in the test suite.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import torch

from inference.video.vae import ViTVAE
from scripts.parity.common import AS_RECORDED, CheckResult, Setup
from scripts.parity.vae import misc, tiling
from scripts.parity.vae.files import GoldenFile, check_files, guarded, model_input

_STEMS = {"vae": r"vae_\w+", "tiling": r"tiling\w*", "misc": r"misc\w*"}
# Stored statistics are rounded to four places.
_STATISTICS_TOLERANCE = 5.1e-5


def claims(name: str) -> bool:
    return any(re.fullmatch(rf"{stem}\.(json|safetensors)", name) for stem in _STEMS.values())


def check(directory: Path, setup: Setup = AS_RECORDED) -> Iterator[CheckResult]:
    """Every case of the three families found in ``directory``."""
    check_file = {"vae": _check_file, "tiling": tiling.check_file, "misc": misc.check_file}
    claimed = [path.name for path in directory.iterdir() if claims(path.name)]
    for family, pattern in _STEMS.items():
        stems = sorted({name.rsplit(".", 1)[0] for name in claimed if re.fullmatch(pattern, name.rsplit(".", 1)[0])})
        yield from check_files(family, directory, stems, check_file[family], setup.device)


def _check_file(golden: GoldenFile, _directory: Path) -> Iterator[CheckResult]:
    variants = golden.index.get("variants", {})
    if not any(variant.get("cases") for variant in variants.values()):
        yield golden.failure(golden.stem, "the index lists no case")
    for name, variant in variants.items():
        yield from guarded(golden, name, _check_variant(golden, name, variant))


def _check_variant(golden: GoldenFile, name: str, variant: dict) -> Iterator[CheckResult]:
    vae = golden.vae(variant["ddconfig"], variant["model_type"], variant["state_dict_prefix"])
    for case, entry in variant["cases"].items():
        prefix = f"{name}/{case}/"
        yield from guarded(golden, f"{name}/{case}", _check_case(golden, vae, prefix, entry))


def _check_case(golden: GoldenFile, vae: ViTVAE, prefix: str, entry: dict) -> Iterator[CheckResult]:
    case = prefix.rstrip("/")
    stored = {name.removeprefix(prefix) for name in golden.names(prefix)}
    for quantity in ("video", "latent", "decoded"):
        tensor = golden.tensor(prefix + ("video_u8" if quantity == "video" else quantity))
        yield golden.equal(case, f"{quantity}_shape", list(tensor.shape), entry[f"{quantity}_shape"])
    for quantity, statistics in entry.get("stats", {}).items():
        yield from _check_statistics(golden, case, prefix + quantity, statistics)

    latent = golden.tensor(prefix + "latent")
    actual = _run(vae, model_input(golden.tensor(prefix + "video_u8")), latent)
    for quantity in sorted(stored & set(actual)):
        yield golden.absolute(case, quantity, actual[quantity], prefix + quantity)


def _run(vae: ViTVAE, video: torch.Tensor, latent: torch.Tensor) -> dict[str, torch.Tensor]:
    """Everything a case may state, by its name there."""
    seen: dict[str, torch.Tensor] = {}
    hooks = [vae.encoder.register_forward_hook(lambda _m, _i, output: seen.update(moments=output))]

    def record(module: torch.nn.Module, name: str, *, its_input: bool = False) -> None:
        if its_input:
            hook = module.register_forward_pre_hook(lambda _m, inputs: seen.update({f"inter/{name}": inputs[0]}))
        else:
            hook = module.register_forward_hook(lambda _m, _i, output: seen.update({f"inter/{name}": output}))
        hooks.append(hook)

    for half_name, half in (("encoder", vae.encoder), ("decoder", vae.decoder)):
        record(half.blocks[0], f"{half_name}.tokens_in", its_input=True)
        for number, block in enumerate(half.blocks):
            record(block.attn, f"{half_name}.block{number}.attn_out")
            record(block, f"{half_name}.block{number}.out")
        record(half.norm, f"{half_name}.norm")
    record(vae.decoder.last_layer, "decoder.unpatched", its_input=True)
    seen["latent"] = vae.encode(video).mode()
    seen["decoded"] = vae.decode(latent)
    for hook in hooks:
        hook.remove()
    seen["decoder_raw"] = vae.decode(latent, one_latent_is_image=False)
    return seen


def _check_statistics(golden: GoldenFile, case: str, name: str, statistics: dict) -> Iterator[CheckResult]:
    values = golden.tensor(name).double()
    actual = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
    for statistic, expected in statistics.items():
        error = abs(actual[statistic].item() - expected)
        yield CheckResult(golden.family, case, f"{name.rsplit('/', 1)[1]} {statistic}", error, _STATISTICS_TOLERANCE)
