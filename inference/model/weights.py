"""Checkpoints: the folder a configuration means, and strict loading from safetensors (docs/transformer.md, "Tensors").

Headers are read and compared with the module before any tensor is, so a wrong checkpoint is refused at once and with
everything that is wrong with it. Nothing is ever unpickled.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from inference.config import MagiConfig, require_path
from inference.errors import ExpectedError
from inference.files import read_json

logger = logging.getLogger(__name__)

LISTED_PER_KIND = 20
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# Between these a stored tensor is converted to what the module asks for; any other difference is an error, since an
# fp8 weight means nothing without the scales stored beside it.
_CONVERTIBLE = {torch.float64, torch.float32, torch.float16, torch.bfloat16}

# (fp8_quant, distill) of engine_config to the sub-folder of runtime_config.load.
_VARIANTS = {
    (False, False): "inference_weight",
    (False, True): "inference_weight.distill",
    (True, False): "inference_weight.fp8",
    (True, True): "inference_weight.fp8.distill",
}


class WeightsError(ExpectedError):
    """A checkpoint that is absent, damaged or not the one the module needs."""


@dataclass(frozen=True)
class _Stored:
    """What a header says of one tensor."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # safetensors' name of it


def load_weights(
    module: nn.Module,
    directory: Path,
    *,
    device: torch.device | str = "cpu",
    name: str = "model",
    base_name: str = "model",
) -> None:
    """Fill ``module``, built on the meta device, with the checkpoint in ``directory``.

    Args:
        module: every parameter and persistent buffer is replaced; dtypes are the module's.
        directory: holds ``<base_name>.safetensors``, or ``<base_name>.safetensors.index.json`` and its shards.
        device: where the tensors go, one file after the other (on the CPU they stay mapped to the file).
        name: what messages call the module.
        base_name: "model" for transformers, "diffusion_pytorch_model" for a diffusers folder.

    Raises:
        WeightsError: no such checkpoint, a damaged file, or any tensor missing, unexpected, misshapen or of a dtype
            that cannot be converted; all of them are named, before any data is read.
    """
    stored = _checked_headers(module, Path(directory), name, base_name)
    wanted = {key: tensor.dtype for key, tensor in module.state_dict().items()}
    converted: Counter[str] = Counter()
    for file in dict.fromkeys(tensor.file for tensor in stored.values()):
        tensors = {}
        with _open(file, name, device=str(device)) as shard:
            for key in (key for key, tensor in stored.items() if tensor.file == file):
                tensor = shard.get_tensor(key)
                if tensor.dtype != wanted[key]:
                    converted[f"{tensor.dtype} to {wanted[key]}"] += 1
                tensors[key] = tensor.to(wanted[key])
        module.load_state_dict(tensors, strict=False, assign=True)
    for change, count in converted.items():
        logger.info("%s: %d tensors converted from %s", name, count, change)
    logger.info("%s: %d tensors loaded from %s", name, len(stored), directory)


def check_weights(module: nn.Module, directory: Path, *, name: str = "model", base_name: str = "model") -> None:
    """Everything that ``load_weights`` refuses, from the headers alone: seconds, where loading may take minutes."""
    _checked_headers(module, Path(directory), name, base_name)


def weights_fingerprint(config: MagiConfig) -> str:
    """Which weights the transformer has: a digest of names, types, shapes, vectors and first rows of its tensors.

    The same for a checkpoint in one file and in shards; read in seconds where a digest of all bytes would take minutes.
    Raises what :func:`checkpoint_directory` does, and :class:`WeightsError` for files that cannot be read.
    """
    digest = hashlib.sha256()
    name = "transformer"
    stored = _read_headers(_checkpoint_files(checkpoint_directory(config), "model", name), name)
    opened = {file: _open(file, name) for file in {tensor.file for tensor in stored.values()}}
    for key, tensor in sorted(stored.items()):
        file = opened[tensor.file]
        part = file.get_slice(key)[:1] if len(tensor.shape) > 1 else file.get_tensor(key)
        digest.update(f"{key} {tensor.dtype} {tensor.shape} ".encode())
        digest.update(part.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def checkpoint_directory(config: MagiConfig) -> Path:
    """The folder of the transformer's weights: the sub-folder of ``runtime_config.load`` that the engine asks for.

    Raises ``FileNotFoundError`` when ``load`` is not set or does not exist, :class:`WeightsError` when it has no
    such sub-folder.
    """
    parent = require_path(config.runtime.load, "runtime_config.load")
    variant = config.engine.fp8_quant, config.engine.distill
    folder = parent / _VARIANTS[variant]
    if folder.is_dir():
        return folder
    found = sorted(entry.name for entry in parent.iterdir()) if parent.is_dir() else []
    hints = [f"for {name} set {_switches(*key)}" for key, name in _VARIANTS.items() if name in found]
    if not hints and any(Path(entry).suffix == ".safetensors" for entry in found):
        hints = [f"if these are the weights themselves, move them into a sub-folder {folder.name}"]
    raise WeightsError(
        f"{parent} has no folder {folder.name}, which engine_config asks for ({_switches(*variant)}). "
        f"It holds: {_names(found)}{''.join(f'; {hint}' for hint in hints)}"
    )


def _switches(fp8: bool, distill: bool) -> str:
    return f"fp8_quant {str(fp8).lower()}, distill {str(distill).lower()}"


def _names(entries: list[str]) -> str:
    return ", ".join(entries[:LISTED_PER_KIND]) + (", ..." if len(entries) > LISTED_PER_KIND else "") or "nothing"


def _checkpoint_files(directory: Path, base_name: str, name: str) -> list[Path]:
    if not directory.is_dir():
        raise WeightsError(f"{name}: {directory} is not a folder")
    single, index = directory / f"{base_name}.safetensors", directory / f"{base_name}.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        return _shards(index, name)
    entries = sorted(entry.name for entry in directory.iterdir())
    pickles = [entry for entry in entries if Path(entry).suffix in PICKLE_SUFFIXES]
    if pickles:
        raise WeightsError(
            f"{name}: {directory} holds {_names(pickles)} but no {single.name}. Pickled weights "
            "are not read, since a pickle can run any code; convert them with safetensors.torch.save_file"
        )
    raise WeightsError(f"{name}: {directory} holds neither {single.name} nor {index.name}, but: {_names(entries)}")


def _shards(index: Path, name: str) -> list[Path]:
    try:
        weight_map = read_json(index)["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{name}: {index} is not a safetensors index with a weight_map: {error!r}") from error
    astray = [shard for shard in shards if not isinstance(shard, str) or Path(shard).name != shard]
    if astray:
        raise WeightsError(f"{name}: {index} names shards outside its own folder: {astray[:LISTED_PER_KIND]}")
    absent = [shard for shard in shards if not (index.parent / shard).is_file()]
    if absent:
        raise WeightsError(
            f"{name}: {len(absent)} of the {len(shards)} shards named by {index} are missing: "
            f"{_names(absent)}; download them again"
        )
    return [index.parent / shard for shard in shards]


def _checked_headers(module: nn.Module, directory: Path, name: str, base_name: str) -> dict[str, _Stored]:
    stored = _read_headers(_checkpoint_files(directory, base_name, name), name)
    _compare(module, stored, name, directory)
    return stored


def _read_headers(files: Iterable[Path], name: str) -> dict[str, _Stored]:
    stored: dict[str, _Stored] = {}
    for file in files:
        with _open(file, name) as shard:
            for key in shard.keys():  # noqa: SIM118 - safe_open is not iterable
                if key in stored:
                    raise WeightsError(f"{name}: {key} is in {stored[key].file} and again in {file}")
                header = shard.get_slice(key)
                stored[key] = _Stored(file, tuple(header.get_shape()), header.get_dtype())
    return stored


def _open(file: Path, name: str, device: str = "cpu") -> safe_open:
    try:
        return safe_open(str(file), framework="pt", device=device)
    except (SafetensorError, OSError) as error:
        with file.open("rb") as stream:
            start = stream.read(16)
        if start.startswith((b"PK", b"\x80")):
            reason = "it is a pickle under another name, which is not read since a pickle can run any code"
        elif start.startswith(b"version https:"):
            reason = "it is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"
        else:
            reason = f"truncated or damaged ({error}): download it again"
        raise WeightsError(f"{name}: {file} ({file.stat().st_size} bytes) cannot be read: {reason}") from error


def _compare(module: nn.Module, stored: dict[str, _Stored], name: str, directory: Path) -> None:
    wanted = module.state_dict()
    common = [key for key in wanted if key in stored]
    kinds = {
        "missing": [_describe(key, wanted[key].shape) for key in wanted if key not in stored],
        "unexpected": [_describe(key, stored[key].shape) for key in stored if key not in wanted],
        "misshapen": [
            f"{key}: stored {list(stored[key].shape)}, needed {list(wanted[key].shape)}"
            for key in common
            if stored[key].shape != tuple(wanted[key].shape)
        ],
        "wrong dtype": [
            f"{key}: stored {stored[key].dtype}, needed {wanted[key].dtype}"
            for key in common
            if not _fits(stored[key].dtype, wanted[key].dtype)
        ],
        # These are in no checkpoint, so on the meta device they would stay without values.
        "without values": [key for key in _left_on_meta(module) if key not in wanted],
    }
    lines = [line for kind, entries in kinds.items() if entries for line in _listing(kind, entries)]
    if lines:
        raise WeightsError("\n".join([f"{name}: the checkpoint in {directory} does not fit the model", *lines]))


def _describe(key: str, shape: Iterable[int]) -> str:
    return f"{key} {list(shape)}"


def _fits(stored: str, wanted: torch.dtype) -> bool:
    dtype = _DTYPES.get(stored)
    return dtype == wanted or (dtype in _CONVERTIBLE and wanted in _CONVERTIBLE)


def _left_on_meta(module: nn.Module) -> Iterator[str]:
    for key, buffer in module.named_buffers():
        if buffer.is_meta:
            yield key


def _listing(kind: str, entries: list[str]) -> Iterator[str]:
    yield f"  {len(entries)} {kind}:"
    yield from (f"    {entry}" for entry in entries[:LISTED_PER_KIND])
    if len(entries) > LISTED_PER_KIND:
        yield f"    ... and {len(entries) - LISTED_PER_KIND} more"
