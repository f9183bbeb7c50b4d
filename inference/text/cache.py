"""Caption features on disk, one file per prompt and text encoder (docs/memory.md, "Caption features on disk")."""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from inference.config import resolve_path
from inference.files import replacing

logger = logging.getLogger(__name__)

# Of each file of the encoder this many samples of this many bytes are read: a checkpoint of 19 GB in an instant.
SAMPLES = 64
SAMPLE_BYTES = 2**16

_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class CaptionFeatures:
    """What T5 says of a prompt: ``features`` (1, 1, L, width) float32 and ``mask`` (1, L) int64, on the CPU.

    Where the mask is 0 the features mean nothing. ``unknown``: words of the cleaned prompt that T5 has no token for.
    ``from_cache``: they were read, not computed.
    """

    features: Tensor
    mask: Tensor
    unknown: tuple[str, ...] = ()
    from_cache: bool = False


class TextCache:
    """The folder with the features of one encoder.

    Args:
        folder: made if it is not there. Several processes may share it.
        encoder: what determines the features besides the prompt, as ``encoder_identity`` says it.

    Raises OSError where the folder cannot be made.
    """

    def __init__(self, folder: Path, encoder: str) -> None:
        self.folder = folder
        self.encoder = encoder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(error.errno, f"runtime_config.text_cache: {folder}: {error.strerror}") from error

    def path(self, text: str) -> Path:
        """Where the features of ``text``, a cleaned prompt, are kept."""
        return self.folder / f"{_digest([self.encoder, text])}{_SUFFIX}"

    def read(self, text: str) -> CaptionFeatures | None:
        """The features of ``text``, or None where they are not there; a file that is damaged counts as none, and a
        warning says so.
        """
        path = self.path(text)
        if not path.is_file():
            return None
        try:
            return self._load(path, text)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            logger.warning("caption features in %s cannot be used and are made anew: %s", path, error)
            return None

    def write(self, text: str, found: CaptionFeatures) -> None:
        """Keep the features of ``text``. A warning where that fails: the run has them."""
        kept = {"rows": found.features[0, 0][found.mask[0].bool()].contiguous(), "mask": found.mask}
        notes = {"text": text, "encoder": self.encoder, "sha256": _content_digest(kept)}
        notes["unknown"] = json.dumps(found.unknown)
        try:
            with replacing(self.path(text)) as part:
                part.write_bytes(save(kept, metadata=notes))
        except OSError as error:
            logger.warning("caption features could not be kept: %s", error)

    def _load(self, path: Path, text: str) -> CaptionFeatures:
        with safe_open(str(path), framework="pt") as file:
            kept = {name: file.get_tensor(name) for name in ("rows", "mask")}
            notes = file.metadata() or {}
        if notes.get("sha256") != _content_digest(kept):
            raise ValueError("the numbers are not those that were written")
        if (notes.get("text"), notes.get("encoder")) != (text, self.encoder):
            raise ValueError("they are those of another prompt or encoder")
        if "unknown" not in notes:
            raise ValueError("an earlier version wrote them, without the words that the encoder does not know")
        rows, mask = kept["rows"], kept["mask"]
        features = torch.zeros(1, 1, mask.shape[1], rows.shape[1])
        features[0, 0, mask[0].bool()] = rows
        return CaptionFeatures(features, mask, tuple(json.loads(notes["unknown"])), from_cache=True)


def cache_folder(setting: str) -> Path:
    """The folder that ``runtime_config.text_cache`` means; it need not exist, its parent decides where it is."""
    given = Path(setting)
    return resolve_path(given) if resolve_path(given).exists() else resolve_path(given.parent) / given.name


def encoder_identity(folder: Path, max_length: int, dtype: torch.dtype, device: torch.device) -> str:
    """A digest of all that the features of a prompt depend on: the encoder's files (names, sizes, samples of their
    contents), the length prompts are cut to, and the arithmetic (dtype, kind of device).
    """
    files = [[file.name, file.stat().st_size, _sampled_digest(file)] for file in _encoder_files(folder)]
    return _digest([files, max_length, str(dtype), device.type])


def _encoder_files(folder: Path) -> Iterator[Path]:
    """The files directly in the folder, in order of their names, without hidden ones and notes for people."""
    for entry in sorted(folder.iterdir()):
        if entry.is_file() and not entry.name.startswith(".") and entry.suffix != ".md":
            yield entry


def _sampled_digest(file: Path) -> str:
    """SHA-256 of a small file's contents, or of samples spread evenly over a large one's, both ends among them."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= SAMPLES * SAMPLE_BYTES:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        digest = hashlib.sha256()
        for number in range(SAMPLES):
            stream.seek(number * (size - SAMPLE_BYTES) // (SAMPLES - 1))
            digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _digest(parts: list[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _content_digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the bytes and shapes of ``tensors``."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
