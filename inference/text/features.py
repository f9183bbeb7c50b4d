"""Prompts to caption features: read from the disk where they are known, made by T5 where not (docs/memory.md)."""

from collections.abc import Callable
from pathlib import Path

import torch

from inference.config import MagiConfig, require_path
from inference.placement.residency import Residency, place
from inference.text.cache import CaptionFeatures, TextCache, cache_folder, encoder_identity
from inference.text.cleaning import clean_caption
from inference.text.t5 import T5TextEncoder, check_t5, load_t5

DTYPE = torch.float32


class PromptEncoder:
    """The text encoder of a run, loaded when it is first needed.

    Args:
        load: gives the encoder and where it lies between uses.
        cache: features that are known; None keeps nothing on disk.
        bundled: features that came with the model; they are read alone.
    """

    def __init__(
        self,
        load: Callable[[], tuple[T5TextEncoder, Residency]],
        cache: TextCache | None = None,
        bundled: TextCache | None = None,
    ) -> None:
        self._load = load
        self._loaded: tuple[T5TextEncoder, Residency] | None = None
        self.cache = cache
        self.bundled = bundled

    @property
    def residency(self) -> Residency | None:
        """Where the encoder lies; None while it is not loaded."""
        return None if self._loaded is None else self._loaded[1]

    def ready(self) -> tuple[T5TextEncoder, Residency]:
        """The encoder, loaded now if it was not before; raises what ``load`` raises."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def encode(self, prompt: str) -> CaptionFeatures:
        """Features and mask of ``prompt`` on the CPU; ValueError for text that cannot be cleaned."""
        text = clean_caption(prompt)
        for kept in (self.bundled, self.cache):
            if kept is not None and (known := kept.read(text)) is not None:
                return known
        found = self._compute(prompt)
        if self.cache is not None:
            self.cache.write(text, found)
        return found

    def _compute(self, prompt: str) -> CaptionFeatures:
        t5, residency = self.ready()
        with residency.visit():
            features, mask = t5.encode(prompt)
            return CaptionFeatures(features.cpu(), mask.cpu(), t5.unknown_words(clean_caption(prompt)))


def prompt_encoder(config: MagiConfig, directory: Path, device: torch.device) -> PromptEncoder:
    """The encoder in ``directory`` as the configuration wants it; loaded at once where no features lie on disk.

    Args:
        config: the whole configuration.
        directory: ``t5_pretrained``.
        device: that of the run, which ``t5_device`` "cuda" means.

    Raises FileNotFoundError and ValueError for files that are missing or do not belong to the transformer.
    """
    runtime, length = config.runtime, config.model.caption_max_length
    own = _own_device(runtime.t5_device, device)

    def load() -> tuple[T5TextEncoder, Residency]:
        t5 = load_t5(directory, dtype=DTYPE, max_length=length)
        return t5, place("text encoder", t5.model, own, config.engine.offload_t5)

    folder, width = check_t5(directory)
    if width != config.model.caption_channels:
        raise ValueError(
            f"the text encoder in {directory} gives features of {width} numbers, but the transformer takes "
            f"caption_channels {config.model.caption_channels}: they do not belong together"
        )
    if runtime.text_cache is None and runtime.known_prompts is None:
        encoder = PromptEncoder(load)
        encoder.ready()
        return encoder
    identity = encoder_identity(folder, length, DTYPE, own)
    cache = None if runtime.text_cache is None else TextCache(cache_folder(runtime.text_cache), identity)
    if runtime.known_prompts is None:
        return PromptEncoder(load, cache)
    bundled = require_path(runtime.known_prompts, "runtime_config.known_prompts")
    return PromptEncoder(load, cache, TextCache(bundled, identity))


def _own_device(name: str, device: torch.device) -> torch.device:
    """The device that ``t5_device`` means in a run on ``device``."""
    try:
        return device if name == "cuda" else torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"runtime_config.t5_device {name!r} is no device: {error}") from error
