"""From T5 features to what each chunk attends to: special tokens, null branch, packing.

Source: docs/conditioning.md, "Special tokens" and "Captions per chunk".

Sizes in the docstrings: L positions of a caption (``caption_max_length``), Cc its feature width (``caption_channels``).
Only positions whose mask is 1 are attended to, so the sampler works with packed features, (m, Cc) per chunk; the
chunks of a video differ only in their duration token. The padded tensors are there for comparison with other code.
"""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# The null branch attends to this many positions, whatever the prompt.
NULL_POSITIONS = 50
MAX_DURATION = 8

# Field of SpecialTokens -> (published name, row of `other_tokens` in the published file).
_OTHER_TOKENS = {
    "transition": ("TRANS_TOKEN", 0),
    "hq": ("HQ_TOKEN", 1),
    "static_first_frames": ("STATIC_FIRST_FRAMES_TOKEN", 2),
    "dynamic_first_frames": ("DYNAMIC_FIRST_FRAMES_TOKEN", 3),
    "borderness": ("BORDERNESS_TOKEN", 4),
    "three_d_model": ("THREE_D_MODEL_TOKEN", 15),
    "two_d_anime": ("TWO_D_ANIME_TOKEN", 16),
}
_DURATION_ROWS = range(7, 7 + MAX_DURATION)
_LAST_ROW = 16


@dataclass(frozen=True)
class PromptFlags:
    """Which special tokens precede the prompt; the defaults are those of the published run scripts."""

    pad_static: bool = False
    pad_dynamic: bool = False
    pad_borderness: bool = False
    pad_hq: bool = True
    pad_three_d_model: bool = False
    pad_two_d_anime: bool = False
    pad_duration: bool = True
    neg_prompt: bool = False

    @classmethod
    def from_switches(cls, switches: Mapping[str, str]) -> "PromptFlags":
        """Flags from the published code's switches, such as {"PAD_HQ": "1"}; a switch that is not named is off."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(switches) - {name.upper() for name in known})
        if unknown:
            raise ValueError(f"unknown prompt switches {unknown}; known: {[name.upper() for name in known]}")
        on = ("1", "true", "yes", "y", "on", "enabled")
        return cls(**{name: switches.get(name.upper(), "").lower() in on for name in known})


@dataclass(frozen=True)
class SpecialTokens:
    """MAGI-1's learned special tokens: each (Cc,) float32, ``duration`` (8, Cc) for 1 to 8 chunks still to come."""

    caption: Tensor
    logo: Tensor
    transition: Tensor
    hq: Tensor
    static_first_frames: Tensor
    dynamic_first_frames: Tensor
    borderness: Tensor
    three_d_model: Tensor
    two_d_anime: Tensor
    duration: Tensor

    @property
    def width(self) -> int:
        return self.caption.shape[0]

    @classmethod
    def from_dict(cls, tokens: Mapping[str, Tensor]) -> "SpecialTokens":
        """Tokens by their published names (CAPTION_TOKEN, …, DURATION_TOKEN_1 to _8), each (Cc,) or (1, Cc)."""
        names = {"caption": "CAPTION_TOKEN", "logo": "LOGO_TOKEN"}
        names |= {field: name for field, (name, _) in _OTHER_TOKENS.items()}
        durations = [f"DURATION_TOKEN_{number}" for number in range(1, MAX_DURATION + 1)]
        missing = [name for name in (*names.values(), *durations) if name not in tokens]
        if missing:
            raise ValueError(f"special tokens missing: {', '.join(missing)}")
        vectors = {field: tokens[name].reshape(-1).float() for field, name in names.items()}
        duration = [tokens[name].reshape(-1).float() for name in durations]
        widths = sorted({vector.shape[0] for vector in (*vectors.values(), *duration)})
        if len(widths) > 1:
            raise ValueError(f"special tokens of different widths: {widths}")
        return cls(**vectors, duration=torch.stack(duration))

    @classmethod
    def load(cls, path: str | Path, width: int) -> "SpecialTokens":
        """Read MAGI-1's special_tokens.npz, rounded to float16 as published. ``width`` is the model's Cc.

        Raises FileNotFoundError, and ValueError if the file is not such an archive or of another width.
        """
        arrays = _read_archive(Path(path))
        other = arrays["other_tokens"]
        tokens = {"CAPTION_TOKEN": arrays["caption_token"][0], "LOGO_TOKEN": arrays["logo_token"][0]}
        tokens |= {name: other[row] for name, row in _OTHER_TOKENS.values()}
        tokens |= {f"DURATION_TOKEN_{number}": other[row] for number, row in enumerate(_DURATION_ROWS, start=1)}
        if tokens["CAPTION_TOKEN"].shape[0] != width:
            raise ValueError(
                f"the special tokens in {path} are {tokens['CAPTION_TOKEN'].shape[0]} wide, but the model's "
                f"caption_channels is {width}: file and model do not belong together"
            )
        return cls.from_dict(tokens)

    def to(self, device: torch.device | str) -> "SpecialTokens":
        return SpecialTokens(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def _read_archive(path: Path) -> dict[str, Tensor]:
    """The three arrays of special_tokens.npz as float16, each (rows, Cc)."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no special tokens at {path}: copy special_tokens.npz from MAGI-1's code (example/assets there, 3.3 MB) "
            "and point the config at it, or switch all prompt flags off"
        )
    arrays = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in ("caption_token", "logo_token", "other_tokens"):
                arrays[name] = torch.from_numpy(archive[name].astype(np.float16))
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is not MAGI-1's special_tokens.npz, which has the number arrays caption_token, logo_token and "
            f"other_tokens: {error}"
        ) from error
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    one_width = all(len(shape) == 2 for shape in shapes.values()) and len({shape[1] for shape in shapes.values()}) == 1
    enough_rows = one_width and shapes["other_tokens"][0] > _LAST_ROW and shapes["caption_token"][0] == 1
    if not (enough_rows and shapes["logo_token"][0] == 1):
        raise ValueError(
            f"the arrays in {path} have shapes {shapes}; expected (1, width), (1, width) and at least "
            f"({_LAST_ROW + 1}, width)"
        )
    return arrays


def _prepend(front: Tensor, positions: Tensor) -> Tensor:
    """Push ``positions`` right by ``front`` and cut the result to their old length."""
    return torch.cat([front, positions])[: positions.shape[0]]


@dataclass(frozen=True)
class ChunkCaptions:
    """The caption of every chunk of a video, and of the null branch; built by :func:`assemble_captions`.

    ``text`` (L, Cc) and ``text_mask`` (L,) bool are the prompt's. In front of it, in generated chunks, stand
    the token of ``durations`` (8, Cc) that tells how many chunks are still to come, None if switched off, and then
    ``front`` (k, Cc).
    ``null_embedding`` (L, Cc) is the learned null caption, with ``null_front`` (j, Cc) in front of it.
    """

    chunk_num: int
    offset: int
    text: Tensor
    text_mask: Tensor
    front: Tensor
    durations: Tensor | None
    null_embedding: Tensor
    null_front: Tensor

    @property
    def null(self) -> Tensor:
        """The null branch's features at all positions: (L, Cc), the same for every chunk."""
        return _prepend(self.null_front, self.null_embedding)

    @property
    def null_mask(self) -> Tensor:
        """(L,) bool: the first 50 positions, with or without special tokens among them."""
        return torch.arange(self.text.shape[0], device=self.text.device) < NULL_POSITIONS

    def packed_null(self) -> Tensor:
        """What the null branch attends to, in every chunk: (min(L, 50), Cc)."""
        return torch.cat([self.null_front, self.null_embedding[:NULL_POSITIONS]])[:NULL_POSITIONS]

    def packed_cond(self, chunk: int) -> Tensor:
        """What ``chunk`` attends to in the conditional branch: (m, Cc); nothing, (0, Cc), if it is a given chunk."""
        self._check_chunk(chunk)
        if not self.text_mask.any():
            return self.packed_null()
        if chunk < self.offset:
            return self.text[:0]
        front = self._special_tokens(chunk)
        kept = max(0, self.text.shape[0] - front.shape[0])
        packed = torch.cat([front, self.text[:kept][self.text_mask[:kept]]])
        return packed[: self.text.shape[0]]

    def packed(self, chunks: Sequence[int], null: bool = False) -> tuple[Tensor, list[int]]:
        """Packed features of ``chunks`` one after the other, (sum of lengths, Cc), and the length of each."""
        parts = [self.packed_null() if null else self.packed_cond(chunk) for chunk in chunks]
        return torch.cat([self.text[:0], *parts]), [part.shape[0] for part in parts]

    def padded_cond(self) -> tuple[Tensor, Tensor]:
        """The conditional branch at all positions: features (chunk_num, L, Cc), mask (chunk_num, L) bool.

        For comparisons only: at L = 800 and Cc = 4096 this is 13 MB a chunk.
        """
        chunks = [self._padded_chunk(chunk) for chunk in range(self.chunk_num)]
        return torch.stack([features for features, _ in chunks]), torch.stack([mask for _, mask in chunks])

    def _padded_chunk(self, chunk: int) -> tuple[Tensor, Tensor]:
        # A prompt without any token: the null branch serves for both, in the given chunks too.
        if not self.text_mask.any():
            return self.null, self.null_mask
        if chunk < self.offset:
            return self.null_embedding, torch.zeros_like(self.text_mask)
        front = self._special_tokens(chunk)
        return _prepend(front, self.text), _prepend(self.text_mask.new_ones(front.shape[0]), self.text_mask)

    def _special_tokens(self, chunk: int) -> Tensor:
        if self.durations is None:
            return self.front
        # This one included: the last chunk has token 1, whatever the length of the prefix, and all before the last
        # eight of a long video have token 8.
        remaining = min(self.chunk_num - chunk, MAX_DURATION)
        return torch.cat([self.durations[remaining - 1, None], self.front])

    def _check_chunk(self, chunk: int) -> None:
        if not 0 <= chunk < self.chunk_num:
            raise IndexError(f"chunk {chunk} does not exist in a video of {self.chunk_num} chunks")


def _stack(tokens: list[Tensor], like: Tensor) -> Tensor:
    """(k, Cc), also for k = 0."""
    return torch.stack(tokens) if tokens else like[:0]


def _front_tokens(tokens: SpecialTokens | None, flags: PromptFlags, like: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens in front of the prompt (without duration) and of the null caption: (k, Cc), (j, Cc), first position first.

    MAGI-1 prepends them one at a time, in the order listed here, so the last one listed comes first.
    """
    if tokens is None:
        if any(vars(flags).values()):
            names = [name for name, value in vars(flags).items() if value]
            raise ValueError(f"the prompt flags {names} need the special tokens, and none were loaded")
        return like[:0], like[:0]
    prepended = [
        (flags.pad_static, tokens.static_first_frames),
        (flags.pad_dynamic, tokens.dynamic_first_frames),
        (flags.pad_borderness, tokens.borderness),
        (flags.pad_hq, tokens.hq),
        (flags.pad_three_d_model, tokens.three_d_model),
        (flags.pad_two_d_anime, tokens.two_d_anime),
    ]
    front = [token for wanted, token in reversed(prepended) if wanted]
    negative = [tokens.borderness, tokens.transition, tokens.logo, tokens.caption] if flags.neg_prompt else []
    return _stack(front, like), _stack(negative, like)


def assemble_captions(
    features: Tensor,
    mask: Tensor,
    null_embedding: Tensor,
    tokens: SpecialTokens | None,
    flags: PromptFlags,
    chunk_num: int,
    offset: int,
) -> ChunkCaptions:
    """Captions of a video of ``chunk_num`` chunks, the first ``offset`` of which are given (all prefix).

    ``features`` (1, 1, L, Cc) and ``mask`` (1, L) are those of ``T5TextEncoder.encode``, ``null_embedding`` (L, Cc)
    is the transformer's; the result is float32 on its device. ``tokens`` may be None if all flags are off.
    Raises ValueError where the sizes do not fit.
    """
    length, width = null_embedding.shape
    if tuple(features.shape) != (1, 1, length, width) or tuple(mask.shape) != (1, length):
        raise ValueError(
            f"caption features {tuple(features.shape)} and mask {tuple(mask.shape)} do not fit the null caption of the "
            f"model, {length} positions, {width} wide: expected (1, 1, {length}, {width}) and (1, {length})"
        )
    if tokens is not None and tokens.width != width:
        raise ValueError(f"the special tokens are {tokens.width} wide, the caption features {width}")
    if not 0 <= offset < chunk_num:
        raise ValueError(f"{offset} given chunks of {chunk_num}: at least one chunk must be left to generate")
    device = null_embedding.device
    null_embedding = null_embedding.detach().float()
    tokens = tokens.to(device) if tokens is not None else None
    front, null_front = _front_tokens(tokens, flags, null_embedding)
    durations = tokens.duration if tokens is not None and flags.pad_duration else None
    return ChunkCaptions(
        chunk_num=chunk_num,
        offset=offset,
        text=features[0, 0].to(device).float(),
        text_mask=mask[0].to(device).bool(),
        front=front,
        durations=durations,
        null_embedding=null_embedding,
        null_front=null_front,
    )
