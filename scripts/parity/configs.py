"""Families ``published_configs.json`` and ``checkpoint_keys.json``: the published configurations and tensor lists."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from inference.config import REPOSITORY_ROOT, ConfigError, MagiConfig
from inference.model.dit import VideoDiT
from inference.model.layers import OnePlusLayerNorm
from scripts.parity.common import CheckResult, read_json

CONFIGS = "published_configs.json"
CHECKPOINTS = "checkpoint_keys.json"
CONFIG_SUFFIX = "_config.json"
PRESETS = REPOSITORY_ROOT / "configs" / "model"

# Where files lie is the user's business: the presets name other places than the published files do.
PATH_FIELDS = {"load", "t5_pretrained", "vae_pretrained"}


def claims(name: str) -> bool:
    return name in (CONFIGS, CHECKPOINTS)


def check(directory: Path) -> Iterator[CheckResult]:
    """Every configuration loads and comes back as it was; every checkpoint's tensors are those of our model."""
    configs = read_json(directory / CONFIGS) if (directory / CONFIGS).exists() else {}
    for name, published in configs.items():
        yield from _check_config(name, published)
    if (directory / CHECKPOINTS).exists():
        for variant, listed in read_json(directory / CHECKPOINTS).items():
            name, preset = variant + CONFIG_SUFFIX, PRESETS / f"{variant}.json"
            if name in configs:
                yield from _check_checkpoint(variant, listed, configs[name])
            elif preset.exists():
                yield from _check_checkpoint(variant, listed, read_json(preset))
            else:
                yield _exact("checkpoint_keys", variant, "configuration", [f"neither {CONFIGS} nor a preset has it"])


def _check_config(name: str, published: dict) -> Iterator[CheckResult]:
    try:
        config = MagiConfig.from_json_dict(published, source=name)
    except ConfigError as error:
        yield _exact("published_configs", name, "loads", error.problems)
        return
    yield _exact("published_configs", name, "round trip", _differences(config.to_json_dict(), published))
    preset = PRESETS / f"{name.removesuffix(CONFIG_SUFFIX)}.json"
    if preset.exists():
        yield _exact(
            "published_configs", name, "our preset's values", _preset_differences(read_json(preset), published)
        )


def _preset_differences(preset: dict, published: dict) -> list[str]:
    """Our presets add fields of our own and name other paths; every other value is the published one."""
    shared = {
        section: {key: preset.get(section, {}).get(key, "absent") for key in fields if key not in PATH_FIELDS}
        for section, fields in published.items()
    }
    without_paths = {
        section: {key: value for key, value in fields.items() if key not in PATH_FIELDS}
        for section, fields in published.items()
    }
    return _differences(shared, without_paths)


def _check_checkpoint(variant: str, listed: dict, published: dict) -> Iterator[CheckResult]:
    try:
        config = MagiConfig.from_json_dict(published)
    except ConfigError as error:
        yield _exact("checkpoint_keys", variant, "configuration", error.problems)
        return
    with torch.device("meta"):
        dit = VideoDiT(config.model, distill=config.engine.distill, fp8=config.engine.fp8_quant)
    expected, actual = _listed_tensors(listed), _our_tensors(dit)
    yield _exact("checkpoint_keys", variant, "tensors", _differences(actual, expected))
    counts = {
        "parameters": sum(tensor.numel() for tensor in dit.state_dict().values()),
        "num_layers": config.model.num_layers,
        "same_layer_everywhere": not config.engine.fp8_quant,
    }
    yield _exact("checkpoint_keys", variant, "counts", _differences(counts, {key: listed[key] for key in counts}))


def _listed_tensors(listed: dict) -> dict[str, dict]:
    """Full tensor name to shape and dtypes; the list gives layers once for all of a kind."""
    tensors = dict(listed["outside_layers"])
    last = listed["num_layers"] - 1
    for index in range(listed["num_layers"]):
        kind = "first_and_last_layer" if index in (0, last) else "other_layers"
        tensors |= {f"videodit_blocks.layers.{index}.{key}": value for key, value in listed[kind].items()}
    return tensors


def _our_tensors(dit: nn.Module) -> dict[str, dict]:
    tensors = {}
    for path, module in dit.named_modules():
        for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            compute = module.compute_dtype if isinstance(module, OnePlusLayerNorm) else tensor.dtype
            tensors[f"{path}.{key}"] = {
                "shape": list(tensor.shape),
                "stored": str(tensor.dtype).removeprefix("torch."),
                "compute": str(compute).removeprefix("torch."),
            }
    return tensors


def _differences(actual: dict, expected: dict, place: str = "") -> list[str]:
    """Where two nested dicts differ, as "key: ours, reference"."""
    found = []
    for key in [*expected, *(key for key in actual if key not in expected)]:
        ours, reference = actual.get(key, "absent"), expected.get(key, "absent")
        if isinstance(ours, dict) and isinstance(reference, dict):
            found += _differences(ours, reference, f"{place}{key}.")
        elif ours != reference or isinstance(ours, bool) != isinstance(reference, bool):
            found.append(f"{place}{key}: {ours}, reference {reference}")
    return found


def _exact(family: str, case: str, quantity: str, problems: list[str]) -> CheckResult:
    note = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
    return CheckResult(family, case, quantity, error=float(len(problems)), tolerance=0.0, note=note)
