"""A folder with a model of the published layout, random weights, small enough that a video takes a second."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from inference.config import MagiConfig
from inference.text.t5 import T5_FOLDER
from inference.video.vae import ViTVAE, save_vae
from tests.tiny import tiny_config, tiny_dit

VAE = {
    "video_size": 48,
    "video_length": 8,
    "z_chans": 16,
    "embed_dim": 32,
    "depth": 1,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "qkv_bias": True,
    "conv_last_layer": True,
    "ln_in_attn": True,
    "use_final_proj": True,
}
T5 = {"vocab_size": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "feed_forward_proj": "gated-gelu"}
# Wider than high, so that swapped sides show; the key window that all published files have.
RUNTIME = {"video_size_h": 32, "video_size_w": 48, "num_frames": 24, "noise2clean_kvrange": [5, 4, 3, 2]}
SUBFOLDERS = {"distill": "inference_weight.distill", "base": "inference_weight"}


def build_checkpoint(root: Path) -> None:
    """Write distill.json (one pass) and base.json (three passes) and all that they name into ``root``."""
    write_vae(root / "vae")
    for name, subfolder in SUBFOLDERS.items():
        paths = {
            "load": str(root / "magi"),
            "t5_pretrained": str(root / "t5"),
            "vae_pretrained": str(root / "vae"),
            "special_token_path": str(root / "special_tokens.npz"),
        }
        config = tiny_config(three_pass=name == "base", **RUNTIME, **paths)
        write_transformer(config, root / "magi" / subfolder)
        (root / f"{name}.json").write_text(json.dumps(config.to_json_dict(), indent=1), encoding="utf-8")
    width = config.model.caption_channels
    write_t5(root / "t5" / T5_FOLDER, width)
    write_special_tokens(root / "special_tokens.npz", width)


def write_transformer(config: MagiConfig, folder: Path) -> None:
    folder.mkdir(parents=True)
    tensors = {name: tensor.contiguous() for name, tensor in tiny_dit(config).state_dict().items()}
    save_file(tensors, folder / "model.safetensors")


def write_vae(folder: Path, ddconfig: dict[str, object] = VAE) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        vae = ViTVAE(ddconfig=ddconfig)
    save_vae(vae, folder, ddconfig)


def write_t5(folder: Path, width: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = T5EncoderModel(T5Config(d_model=width, **T5))
    model.save_pretrained(folder)
    write_tokenizer_json(folder)


def write_tokenizer_json(folder: Path) -> None:
    """One token a letter, with T5's special tokens and end token, as the `tokenizers` library writes it."""
    letters = [(piece, -2.0) for piece in ["▁", *"abcdefghijklmnopqrstuvwxyz"]]
    tokenizer = Tokenizer(models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def write_special_tokens(path: Path, width: int, seed: int = 3) -> None:
    values = np.random.default_rng(seed).standard_normal((102, width))
    np.savez(path, caption_token=values[:1], logo_token=values[1:2], other_tokens=values[2:])
