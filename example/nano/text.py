"""The text side of the small model: a word-level tokenizer, a T5 encoder, and the caption features as the product
makes them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from example.nano.scenes.data import words

CAPTION_CHANNELS = 96
CAPTION_MAX_LENGTH = 64
_PAD, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"
# Rows of `other_tokens` in special_tokens.npz.
HIGH_QUALITY_ROW = 1
FIRST_DURATION_ROW = 7
DURATIONS = 8
_OTHER_ROWS = 100


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per known word, lower-cased, punctuation dropped; other words are `<unk>`; `</s>` ends every text."""
    vocabulary = {token: index for index, token in enumerate([_PAD, _END, _UNKNOWN, *words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex("[^a-z0-9]+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {_END}", special_tokens=[(_END, vocabulary[_END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        eos_token=_END,
        unk_token=_UNKNOWN,
        model_max_length=CAPTION_MAX_LENGTH,
        padding_side="right",
    )


def build_encoder(vocabulary_size: int) -> T5EncoderModel:
    """A T5 v1.1 encoder with two layers, with random weights."""
    config = T5Config(
        vocab_size=vocabulary_size,
        d_model=CAPTION_CHANNELS,
        d_kv=24,
        d_ff=192,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        is_encoder_decoder=False,
        use_cache=False,
        tie_word_embeddings=False,
    )
    return T5EncoderModel(config)


def special_tokens(seed: int = 0) -> dict[str, np.ndarray]:
    """The tokens put in front of a caption, fixed and random: the transformer learns what they mean. float16."""
    rng = np.random.default_rng(seed)
    shapes = {"caption_token": 1, "logo_token": 1, "other_tokens": _OTHER_ROWS}
    return {name: rng.normal(0, 1, (rows, CAPTION_CHANNELS)).astype(np.float16) for name, rows in shapes.items()}


class CaptionReader:
    """Caption to packed features with the special tokens in front, as the product's prompt processing gives them."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, encoder: T5EncoderModel, tokens: dict[str, np.ndarray]
    ) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder
        self._other = torch.from_numpy(tokens["other_tokens"]).float()

    def encode(self, captions: list[str]) -> list[torch.Tensor]:
        """T5 features of each caption's own tokens, end token included: (length, channels), differentiable."""
        batch = self.tokenizer(
            captions, padding=True, truncation=True, max_length=CAPTION_MAX_LENGTH, return_tensors="pt"
        )
        states = self.encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        return [row[: int(mask.sum())] for row, mask in zip(states, batch.attention_mask, strict=True)]

    def with_tokens(self, features: torch.Tensor, remaining: int) -> torch.Tensor:
        """Duration, then high quality, then the text; `remaining` chunks come after the one that reads it."""
        duration = self._other[FIRST_DURATION_ROW + min(remaining, DURATIONS - 1)]
        front = torch.stack([duration, self._other[HIGH_QUALITY_ROW]])
        return torch.cat([front, features])[:CAPTION_MAX_LENGTH]


def save_text_encoder(folder: Path, encoder: T5EncoderModel) -> None:
    """The directory `transformers` loads with AutoTokenizer and T5EncoderModel, in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save_pretrained(folder)
    rounded = build_encoder(encoder.config.vocab_size)
    rounded.load_state_dict(encoder.state_dict())
    rounded.to(torch.bfloat16).save_pretrained(folder)
