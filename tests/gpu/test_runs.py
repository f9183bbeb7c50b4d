"""Whole runs at published widths: every mode and method, offloaded or not, and the order of the streams."""

from typing import Any

import pytest
import torch

from harness.methods import read_method
from inference.memory.estimate import PUBLISHED_VAE
from inference.placement.host_memory import SideStream
from inference.placement.residency import Residency
from inference.placement.streaming import StreamedLayers
from inference.sampler import Sampler, kv_geometry, make_schedule
from inference.video.codec import VaeCodec, tiles_for
from inference.video.vae import ViTVAE
from tests.gpu.device import CUDA, Words, pretended, published, transformer
from tests.gpu.watch import Watch
from tests.paths import ROOT

# Small pictures: only the number of tokens follows from them.
SIZE = {"video_size_h": 96, "video_size_w": 96, "num_frames": 144, "num_steps": 4}
FEW = {"num_frames": 72, "num_layers": 2}
FAST = "flowcache_fast"


def sample(watch: Watch, method: str, given: dict[str, Any], prefix: int, name: str, **overrides: Any) -> None:
    """One video of fake numbers; every latent is float32 and on the device."""
    chosen = read_method(str(ROOT / f"configs/method/{method}.yaml"), given)
    streamed = overrides.pop("streamed", False)
    config = chosen.apply_window(published(name, **SIZE | overrides))
    dit = transformer(config, streamed=streamed)
    if streamed:
        dit.videodit_blocks.streamed = StreamedLayers(dit.videodit_blocks.layers, CUDA)
    sampler = Sampler(dit, config, chosen.make_cache(kv_geometry(config, CUDA)), chosen.make_reuse())
    frames = make_schedule(config, prefix).chunk_num * config.runtime.chunk_width
    noise = torch.empty(1, 16, frames, 12, 12, device=CUDA)
    given_latents = torch.empty(1, 16, prefix, 12, 12, device=CUDA) if prefix else None
    for chunk in sampler.run(noise, Words(config), given_latents):
        assert (chunk.latents.dtype, chunk.latents.device) == (torch.float32, CUDA)


@pytest.mark.parametrize(
    ("method", "given", "prefix", "name", "overrides"),
    [
        ("none", {}, 0, "4.5B_distill", FEW),
        ("none", {}, 1, "4.5B_base", FEW),
        ("none", {}, 14, "4.5B_distill_quant", {}),
        (FAST, {}, 0, "4.5B_distill", {"kv_offload": True}),
        (FAST, {"compress_strategy": "frame"}, 0, "4.5B_base", {"streamed": True}),
        (FAST, {"merge_dropped": False, "query_granularity": "chunk"}, 1, "4.5B_distill_quant", {}),
        (FAST, {"keep_rule": "spread", "kept_order": "position"}, 0, "4.5B_distill", {"streamed": True}),
        ("flowcache_published", {}, 14, "24B_distill_quant", {"kv_offload": True, "streamed": True}),
        ("teacache_fast", {}, 0, "4.5B_distill", FEW),
        ("multistep", {}, 0, "4.5B_distill", FEW),
    ],
)
def test_every_mode_and_method_runs_in_order(
    monkeypatch: pytest.MonkeyPatch, method: str, given: dict, prefix: int, name: str, overrides: dict[str, Any]
) -> None:
    with pretended(monkeypatch) as watch:
        sample(watch, method, given, prefix, name, **overrides)
    assert not watch.problems and not watch.streams.races
    assert (watch.streams.count > 1) == bool({"kv_offload", "streamed"} & set(overrides))


@pytest.mark.parametrize(
    "missing",
    [
        "the computation's wait for copies",
        "the copies' wait for the computation",
        "one direction's wait for the other",
    ],
)
def test_a_missing_wait_is_seen(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    if missing == "the computation's wait for copies":
        monkeypatch.setattr(SideStream, "wait", lambda self, mark: None)
    elif missing == "one direction's wait for the other":
        monkeypatch.setattr(SideStream, "after", lambda self, mark: None)
    else:

        def unordered(self: SideStream, target: torch.Tensor, source: torch.Tensor) -> None:
            with torch.cuda.stream(self.stream):
                target.copy_(source, non_blocking=True)

        monkeypatch.setattr(SideStream, "copy", unordered)
    with pretended(monkeypatch) as watch:
        sample(watch, "none", {}, 0, "4.5B_distill", kv_offload=True, streamed=True, num_frames=48)
    assert watch.streams.races


def test_the_autoencoder_decodes_a_chunk_of_720_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        vae = ViTVAE(ddconfig=PUBLISHED_VAE | {"video_size": 256, "video_length": 16, "depth": 2})
    vae.to(torch.bfloat16)
    with pretended(monkeypatch) as watch:
        for module in vae.modules():
            for name, old in list(module.named_parameters(recurse=False)):
                new = torch.empty(old.shape, dtype=old.dtype, device=CUDA)
                setattr(module, name, torch.nn.Parameter(new, requires_grad=False))
        residency = Residency(vae, CUDA)
        codec = VaeCodec(vae, 0.18215, 24, tiles_for(vae, 24, (720, 720)), residency=residency)
        frames = codec.decode_chunk(torch.empty(1, 16, 6, 90, 90, device=CUDA))
    assert (frames.dtype, frames.shape) == (torch.uint8, (24, 720, 720, 3)) and not watch.problems
