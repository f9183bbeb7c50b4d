"""Videos of held-out captions from a training checkpoint, as a contact sheet: `python -m example.nano.preview
--steps 32`.

The way to judge the training: the loss says little. Uses the product's own sampler. Each row of `work/preview.png`
is one prompt, with two frames a chunk; the measured attributes are printed beside the prompt.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from example.nano.data import Scene, caption
from example.nano.latents import load_vae, scene_of
from example.nano.measure import Finding, measure
from example.nano.model import NanoModel, magi_config
from example.nano.text import CaptionReader, build_tokenizer, special_tokens
from example.nano.training import WORK, load_checkpoint
from inference.config import MagiConfig
from inference.model.vae import ViTVAE
from inference.sampler import Sampler


@dataclass(frozen=True)
class TextCaptions:
    """The caption source of one prompt: duration and quality tokens in front, as the product's prompt processing
    makes it.
    """

    reader: CaptionReader
    features: torch.Tensor
    null: torch.Tensor
    chunks: int

    def packed_cond(self, chunk: int) -> torch.Tensor:
        return self.reader.with_tokens(self.features, self.chunks - 1 - chunk)

    def packed_null(self) -> torch.Tensor:
        return self.null


@torch.no_grad()
def sample(model: NanoModel, config: MagiConfig, vae: ViTVAE, scale: float, prompt: str, seed: int) -> np.ndarray:
    """A video (T, 64, 64, 3) uint8 of `config.runtime.num_frames` frames."""
    reader = CaptionReader(build_tokenizer(), model.t5, special_tokens())
    chunks = config.runtime.num_frames // 24
    captions = TextCaptions(reader, reader.encode([prompt])[0], model.null_caption(), chunks)
    noise = torch.randn(1, 16, chunks * 6, 8, 8, generator=torch.Generator().manual_seed(seed))
    latents = torch.cat([chunk.latents for chunk in Sampler(model.dit, config).run(noise, captions)], 2) / scale
    tiles = latents[0].reshape(16, -1, 3, 8, 8).transpose(0, 1)
    video = vae.decode(tiles).permute(0, 2, 3, 4, 1).flatten(0, 1)
    return (video * 127.5 + 127.5).clamp(0, 255).byte().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=WORK / "dit.pt")
    parser.add_argument("--prompts", type=int, default=12, help="how many held-out scenes (default 12)")
    parser.add_argument("--frames", type=int, default=96, help="video frames, a multiple of 24 (default 96)")
    parser.add_argument("--steps", type=int, default=16, help="denoising steps (default 16)")
    parser.add_argument("--sheet", type=Path, default=WORK / "preview.png")
    args = parser.parse_args()
    torch.set_num_threads(1)

    state = load_checkpoint(args.checkpoint)
    config = magi_config().with_overrides(num_frames=args.frames, num_steps=args.steps)
    model = NanoModel(config.model).eval()
    model.load_averaged(state["average"])
    vae = load_vae()
    rows, findings = [], []
    for number in range(args.prompts):
        scene: Scene = scene_of(500_000 + number, True)
        prompt = caption(scene, np.random.default_rng(number))
        video = sample(model, config, vae, state["scale_factor"], prompt, number)
        finding = measure(video, scene)
        findings.append(finding)
        print(f"{number:3} {finding} {prompt}", flush=True)
        rows.append(np.concatenate(list(video[6::12][:12]), 1))
    print(f"step {state['step']}: " + Finding.summary(findings))
    Image.fromarray(np.concatenate(rows)).save(args.sheet)


if __name__ == "__main__":
    main()
