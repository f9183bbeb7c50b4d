"""Transformer and text encoder as one trainable module."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import T5EncoderModel

from example.nano.text import build_encoder, build_tokenizer
from inference.config import NULL_CAPTION_TOKENS, MagiConfig, ModelConfig, load_config
from inference.model.dit import VideoDiT

CONFIG = Path(__file__).parents[2] / "configs" / "model" / "nano.json"
WEIGHTS = Path(__file__).parent / "weights"
# Wavelengths of the published initialisation are meant for many bands; a head of 24 has three, chosen for a grid of
# 6 x 4 x 4 tokens and a window of five chunks.
_ROTARY_BANDS = (1.0, 0.3, 0.08)


def magi_config() -> MagiConfig:
    return load_config(CONFIG)


class NanoModel(nn.Module):
    """`dit` and `t5`, trained together; parameters in float32."""

    def __init__(self, config: ModelConfig, backend: str = "sdpa") -> None:
        super().__init__()
        self.dit = VideoDiT(config, distill=True, backend=backend)
        self.t5 = build_encoder(len(build_tokenizer()))

    @torch.no_grad()
    def initialise(self) -> None:
        """Small residual branches with open gates, and a velocity of zero."""
        self.dit.rope.bands.copy_(torch.tensor(_ROTARY_BANDS))
        self.dit.final_linear.linear.weight.zero_()
        for layer in self.dit.videodit_blocks.layers:
            layer.self_attn_post_norm.weight.fill_(-0.6)  # the effective weight is one more
            layer.mlp_post_norm.weight.fill_(-0.6)
            layer.ada_modulate_layer.proj[0].bias.fill_(0.8)

    @torch.no_grad()
    def load_shipped(self) -> None:
        """Take over the weights that come with this repository."""
        self.dit.load_state_dict(load_file(WEIGHTS / "magi" / "inference_weight.distill" / "model.safetensors"))
        stored = T5EncoderModel.from_pretrained(WEIGHTS / "t5" / "t5-v1_1-xxl", dtype=torch.float32)
        self.t5.load_state_dict(stored.state_dict())

    def null_caption(self) -> torch.Tensor:
        """(50, caption channels): the null branch's caption."""
        return self.dit.y_embedder.null_caption_embedding[:NULL_CAPTION_TOKENS]

    @torch.no_grad()
    def load_averaged(self, weights: dict[str, torch.Tensor]) -> None:
        """Take over averaged parameters (shared ones are listed once)."""
        parameters = dict(self.named_parameters())
        if parameters.keys() != weights.keys():
            raise ValueError(f"averaged weights do not fit: {sorted(parameters.keys() ^ weights.keys())}")
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
