"""Training checkpoints to the folders of a published model: `python -m example.nano.training.export`.

Writes `weights/` (transformer, VAE, T5 with its tokenizer, special tokens, features of captions) from the averaged
weights in `work/`, with every tensor in the type in which a published distilled checkpoint stores it, and the measured
scale factor into `configs/model/nano.json`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from example.nano.captions import write_captions
from example.nano.model import CONFIG, WEIGHTS, NanoModel, magi_config
from example.nano.text import save_text_encoder, special_tokens
from example.nano.training.common import WORK, load_checkpoint
from example.nano.training.latents import load_vae
from example.nano.training.vae import DDCONFIG
from inference.model.dit import VideoDiT
from inference.video.vae import ViTVAE, save_vae

# Tuned on prompts that change.
TRAVEL = WEIGHTS / "magi_travel"


def stored_transformer(model: NanoModel) -> dict[str, Tensor]:
    """The transformer's tensors in their stored types: layers in bfloat16, what surrounds them in float32."""
    config = magi_config().model.model_copy(update={"params_dtype": "torch.bfloat16"})
    with torch.device("meta"):
        types = {name: tensor.dtype for name, tensor in VideoDiT(config, distill=True).state_dict().items()}
    return {name: tensor.detach().to(types[name]).contiguous() for name, tensor in model.dit.state_dict().items()}


def write_scale_factor(scale_factor: float) -> None:
    data = json.loads(CONFIG.read_text())
    text, old = CONFIG.read_text(), data["runtime_config"]["scale_factor"]
    changed = text.replace(f'"scale_factor": {old}', f'"scale_factor": {scale_factor}')
    beside = CONFIG.with_suffix(".part")
    beside.write_text(changed)
    beside.replace(CONFIG)


def write_transformer(model: NanoModel, folder: Path) -> None:
    """Into `folder`, as `load` of a configuration names it."""
    folder = folder / "inference_weight.distill"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(stored_transformer(model), folder / "model.safetensors", metadata={"format": "pt"})


def export_tuned(checkpoint: Path, folder: Path, averaged: bool) -> None:
    """Write the transformer of a tuning (`dit.py --tune`) alone: all else is that of the shipped models."""
    state, model = load_checkpoint(checkpoint), NanoModel(magi_config().model).eval()
    if averaged:
        model.load_averaged(state["average"])
    else:
        model.load_state_dict(state["model"])
    write_transformer(model, folder)
    print(f"checkpoint of step {state['step']}: {folder}")


def export_models(checkpoint: Path, folder: Path, averaged: bool = True) -> float:
    """Write all models of a checkpoint into `folder`; returns the scale factor."""
    state = load_checkpoint(checkpoint)
    model = NanoModel(magi_config().model).eval()
    if averaged:
        model.load_averaged(state["average"])
    else:
        model.load_state_dict(state["model"])
    write_transformer(model, folder / "magi")
    vae = ViTVAE(DDCONFIG)
    vae.load_state_dict(load_vae().state_dict())
    save_vae(vae.to(torch.bfloat16), folder / "vae", DDCONFIG)
    save_text_encoder(folder / "t5" / "t5-v1_1-xxl", model.t5)
    np.savez(folder / "special_tokens.npz", **special_tokens())
    print(f"checkpoint of step {state['step']}")
    return round(state["scale_factor"], 6)


def export(checkpoint: Path, folder: Path, averaged: bool) -> None:
    """Replace `folder` by the models of a checkpoint, and the scale factor in the configuration."""
    beside = folder.with_name(f".part-{folder.name}")
    if beside.exists():
        shutil.rmtree(beside)
    scale_factor = export_models(checkpoint, beside, averaged)
    if folder.exists():
        shutil.rmtree(folder)
    beside.rename(folder)
    write_captions(folder)
    write_scale_factor(scale_factor)
    files = [file for file in folder.rglob("*") if file.is_file()]
    for file in sorted(files):
        print(f"{file.stat().st_size:>10,} {file.relative_to(folder)}")
    print(f"{sum(file.stat().st_size for file in files):>10,} bytes in all")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=WORK / "dit.pt")
    parser.add_argument("--folder", type=Path, default=WEIGHTS)
    parser.add_argument(
        "--last", action="store_true", help="the last weights instead of the averaged ones, which lag behind"
    )
    parser.add_argument(
        "--tuned", action="store_true", help=f"of a tuning: only {TRAVEL.name}, for configs/model/nano_travel.json"
    )
    args = parser.parse_args(argv)
    if args.tuned:
        export_tuned(args.checkpoint, TRAVEL, averaged=not args.last)
        return
    export(args.checkpoint, args.folder, averaged=not args.last)


if __name__ == "__main__":
    main()
