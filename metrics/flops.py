"""Floating point operations of a sampling run, counted from the model's sizes and the run's record.

A multiplication and an addition count as two. Counted are the linear layers and the products of both attentions;
norms, activations and softmax are not (together under one percent at published sizes). The published default, 4.5B
distilled, 64 steps, 240 frames at 720x720 with full history, comes to about 310 PFLOP, where the FlowCache paper
states 306.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar


class Forward(Protocol):
    """What is read of a recorded forward."""

    @property
    def chunk_tokens(self) -> int: ...

    @property
    def keys(self) -> Sequence[int]: ...

    @property
    def caption_tokens(self) -> Sequence[int]: ...


ForwardT = TypeVar("ForwardT", bound=Forward)


@dataclass(frozen=True)
class TransformerSize:
    """Sizes that the count depends on, by the names of the configuration."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_query_groups: int
    kv_channels: int
    caption_channels: int
    gated_linear_unit: bool

    @classmethod
    def of(cls, model_config: Mapping[str, Any]) -> "TransformerSize":
        """From the ``model_config`` section as a mapping."""
        return cls(**{name: model_config[name] for name in cls.__dataclass_fields__})

    @property
    def weights_per_token(self) -> int:
        """Weights of a layer that every video token is multiplied with."""
        width = self.hidden_size
        projections = 2 * width * width + 2 * width * self.num_query_groups * self.kv_channels
        joined = 2 * width * width
        inner = self.ffn_hidden_size
        return projections + joined + width * inner * (3 if self.gated_linear_unit else 2)

    @property
    def weights_per_caption_token(self) -> int:
        """Weights of a layer that every caption token is multiplied with."""
        return self.hidden_size * 2 * self.num_query_groups * self.kv_channels


def forward_flops(size: TransformerSize, forward: Forward) -> int:
    """One forward of the transformer."""
    layer = 0
    for keys, caption in zip(forward.keys, forward.caption_tokens, strict=True):
        layer += 2 * size.weights_per_token * forward.chunk_tokens
        layer += 2 * size.weights_per_caption_token * caption
        layer += 4 * forward.chunk_tokens * (keys + caption) * size.hidden_size
    captions = 2 * size.caption_channels * size.hidden_size * sum(forward.caption_tokens)
    return size.num_layers * layer + captions


def run_flops(size: TransformerSize, forwards: Iterable[Forward]) -> int:
    """All forwards of a run."""
    return sum(forward_flops(size, forward) for forward in forwards)


def counted_flops(size: TransformerSize, counts: Mapping[ForwardT, int]) -> int:
    """All forwards of a run, each kind with how often it was made."""
    return sum(count * forward_flops(size, forward) for forward, count in counts.items())
