"""An index and the tensors beside it, as the VAE families store them, and how their checks report."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError

from inference.video.vae import ViTVAE
from scripts.parity.common import AS_RECORDED, CheckResult, absolute_error, read_json, read_tensors

# (docs/testing.md, "Families and tolerances") Absolute; correct float32 implementations were measured at up to 3e-6.
TOLERANCE = 2e-5
_SAFETENSORS_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "uint8": torch.uint8}


class GoldenFile:
    """``<stem>.json`` and ``<stem>.safetensors``; remembers which tensors were asked for."""

    def __init__(self, family: str, directory: Path, stem: str, device: torch.device = AS_RECORDED.device) -> None:
        self.family = family
        self.stem = stem
        self.index = read_json(directory / f"{stem}.json")
        self.device = device
        self._tensors = read_tensors(directory / f"{stem}.safetensors", device)
        self._used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def tensor(self, name: str) -> torch.Tensor:
        """Raises ``KeyError`` if the file has no such tensor."""
        self._used.add(name)
        return self._tensors[name]

    def names(self, prefix: str) -> list[str]:
        return sorted(name for name in self._tensors if name.startswith(prefix))

    def absolute(self, case: str, quantity: str, actual: torch.Tensor, name: str) -> CheckResult:
        """Compare with the tensor ``name`` at the family's tolerance."""
        return CheckResult(self.family, case, quantity, absolute_error(actual, self.tensor(name)), TOLERANCE)

    def equal(self, case: str, quantity: str, actual: object, expected: object, note: str = "") -> CheckResult:
        """Compare two plain values exactly."""
        same = actual == expected
        return CheckResult(
            self.family,
            case,
            quantity,
            float(not same),
            0.0,
            note if same else f"got {actual!r}, expected {expected!r}",
        )

    def failure(self, case: str, note: str) -> CheckResult:
        return CheckResult(self.family, case, "data", float("inf"), 0.0, note)

    def vae(self, ddconfig: dict, model_type: str, prefix: str, dtype: torch.dtype = torch.float32) -> ViTVAE:
        """A VAE with the weights stored under ``prefix``; raises ``RuntimeError`` if they are not exactly its own."""
        vae = ViTVAE(ddconfig=ddconfig, model_type=model_type)
        weights = {name.removeprefix(prefix): self.tensor(name).float() for name in self.names(prefix)}
        vae.load_state_dict(weights, strict=True)
        return vae.to(self.device, dtype).eval().requires_grad_(False)

    def check_inventory(self) -> Iterator[CheckResult]:
        """The tensors are those the index lists, in shape and type."""
        listed = self.index.get("tensors", {})
        for name in sorted(set(listed) ^ set(self._tensors)):
            where = "listed but not stored" if name in listed else "stored but not listed"
            yield self.failure(name, f"tensor {where}")
        for name in sorted(set(listed) & set(self._tensors)):
            tensor, entry = self._tensors[name], listed[name]
            if list(tensor.shape) != entry["shape"] or tensor.dtype != _SAFETENSORS_TYPES.get(entry["dtype"]):
                yield self.failure(name, f"{tensor.dtype} {list(tensor.shape)} is stored, the index says {entry}")

    def check_all_used(self) -> Iterator[CheckResult]:
        """Call last: a tensor no check has asked for is a miss."""
        for name in sorted(set(self._tensors) - self._used):
            yield self.failure(name, "no check knows this tensor")


def check_files(
    family: str,
    directory: Path,
    stems: Iterable[str],
    check_file: Callable[[GoldenFile, Path], Iterator[CheckResult]],
    device: torch.device = AS_RECORDED.device,
) -> Iterator[CheckResult]:
    """Run ``check_file`` on every pair of index and tensors; a pair of which one half is absent is a miss."""
    for stem in stems:
        absent = [name for name in (f"{stem}.json", f"{stem}.safetensors") if not (directory / name).is_file()]
        if absent:
            yield CheckResult(family, stem, "files", float("inf"), 0.0, f"{absent[0]} is missing")
            continue
        try:
            golden = GoldenFile(family, directory, stem, device)
        except (ValueError, SafetensorError) as error:
            yield CheckResult(family, stem, "files", float("inf"), 0.0, f"cannot be read: {error}")
            continue
        yield from golden.check_inventory()
        yield from check_file(golden, directory)
        yield from golden.check_all_used()


def guarded(golden: GoldenFile, case: str, results: Iterator[CheckResult]) -> Iterator[CheckResult]:
    """Pass on results; data that is absent or does not fit becomes a failed result of this case, not a crash."""
    try:
        yield from results
    except KeyError as error:
        yield golden.failure(case, f"the data has no {error}")
    except (RuntimeError, ValueError, TypeError) as error:
        yield golden.failure(case, f"{type(error).__name__}: {error}")


def model_input(video: torch.Tensor) -> torch.Tensor:
    """Stored uint8 video (N, C, T, H, W) as the model takes it."""
    return video.float() / 127.5 - 1
