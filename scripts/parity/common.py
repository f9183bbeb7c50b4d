"""What every family of reference data shares: the result of one check, and how tensors are compared.

A family module offers two functions:

- ``claims(name: str) -> bool``: does this file name belong to the family (its tensors, its index, its weights)?
- ``check(directory: Path) -> Iterator[CheckResult]``: run every case of the family found in ``directory``.

``scripts/check_parity.py`` runs all of them and reports a file nobody claims as a miss.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file

# (docs/testing.md, "Families and tolerances") A correct float32 implementation reaches 2e-6, a wrong statement moves
# something by 1.5e-4.
RELATIVE_TOLERANCE = 5e-6


CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setup:
    """Where and how the checks compute; by default as the data were made.

    ``dtype``: compute forwards of the transformer in another dtype than they were recorded in. ``backend``: attention.
    """

    device: torch.device = CPU
    dtype: Literal["bfloat16"] | None = None
    backend: str = "eager"


AS_RECORDED = Setup()


@dataclass(frozen=True)
class CheckResult:
    """One compared quantity. ``error`` and ``tolerance`` are in the same unit; an exact comparison has tolerance 0."""

    family: str
    case: str
    quantity: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        # Not `<`: NaN must fail, and an exact comparison passes with error 0.
        return self.error <= self.tolerance


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference over the largest absolute reference value; infinite where the shapes differ."""
    if tuple(actual.shape) != tuple(expected.shape):
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    difference = (actual.double().cpu() - expected.double().cpu()).abs().max().item()
    return difference / max(expected.double().abs().max().item(), 1e-30)


def absolute_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference; infinite where the shapes differ."""
    if tuple(actual.shape) != tuple(expected.shape):
        return float("inf")
    return (actual.double().cpu() - expected.double().cpu()).abs().max().item() if expected.numel() else 0.0


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def read_tensors(path: Path, device: torch.device = AS_RECORDED.device) -> dict[str, torch.Tensor]:
    return load_file(str(path), device=str(device))


def guarded(family: str, case: str, results: Callable[[], Iterable[CheckResult]]) -> Iterator[CheckResult]:
    """The results of one case; whatever stops it becomes a failed result, so that the other cases still run."""
    try:
        yield from results()
    except Exception as error:  # noqa: BLE001 - a miss of this case, whatever it was
        yield CheckResult(family, case, "run", float("inf"), 0, f"{type(error).__name__}: {error}")


def listed_cases(
    directory: Path, family: str, index_name: str, prefix: str
) -> Iterator[tuple[str, dict | CheckResult]]:
    """Every case that the index names or a file holds: its index entry, or the failed result where one of the two is
    missing.

    ``prefix`` is what a case's file name has in front of its name in the index.
    """
    files = {path.stem.removeprefix(prefix) for path in directory.glob(f"{family}_*.safetensors")}
    index = read_json(directory / index_name) if (directory / index_name).exists() else {}
    for name in sorted(files | set(index)):
        if name in index and name in files:
            yield name, index[name]
        else:
            where = index_name if name not in index else "the directory"
            yield name, CheckResult(family, name, "file", float("inf"), 0, f"not in {where}")


def equal(family: str, case: str, quantity: str, actual: object, expected: object) -> CheckResult:
    """An exact comparison of two plain values."""
    same = actual == expected
    return CheckResult(
        family, case, quantity, 0.0 if same else float("inf"), 0, "" if same else f"{actual} != {expected}"
    )
