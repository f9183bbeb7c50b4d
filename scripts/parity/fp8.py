"""Family ``fp8_linear``: one quantised linear layer of each kind, on bfloat16 and on float32 inputs."""

from collections.abc import Iterator
from pathlib import Path

from inference.model.fp8 import Fp8Linear
from scripts.parity.common import AS_RECORDED, CheckResult, Setup, absolute_error, read_json, read_tensors

FAMILY = "fp8_linear"
KINDS = ("per_tensor", "per_channel")
INPUTS = ("bf16", "fp32")
PARAMETERS = ("weight", "weight_scale", "input_scale", "smooth_scale")


def claims(name: str) -> bool:
    return name in (f"{FAMILY}.json", f"{FAMILY}.safetensors")


def check(directory: Path, setup: Setup = AS_RECORDED) -> Iterator[CheckResult]:
    present = [path.name for path in directory.glob(f"{FAMILY}.*") if claims(path.name)]
    if not present:
        return
    if len(present) == 1:
        yield CheckResult(FAMILY, FAMILY, "file", float("inf"), 0, f"only {present[0]} is there")
        return
    sizes = read_json(directory / f"{FAMILY}.json")
    data = read_tensors(directory / f"{FAMILY}.safetensors", setup.device)
    unused = set(data)
    for kind in KINDS:
        layer = Fp8Linear(sizes["in_features"], sizes["out_features"], per_channel=kind == "per_channel")
        names = {name: f"in.{kind}.{name}" for name in PARAMETERS if f"in.{kind}.{name}" in data}
        layer.to(setup.device).load_state_dict({name: data[key] for name, key in names.items()}, strict=True)
        unused -= set(names.values())
        for dtype in INPUTS:
            given, expected = f"in.{kind}.{dtype}.x", f"out.{kind}.{dtype}.y"
            # Fixed arithmetic with one rounding at the end: equal bit by bit.
            error = absolute_error(layer(data[given]), data[expected])
            yield CheckResult(FAMILY, kind, expected, error, 0)
            unused -= {given, expected}
    for key in sorted(unused):
        yield CheckResult(FAMILY, FAMILY, key, float("inf"), 0, "nothing of ours to compare it with")
