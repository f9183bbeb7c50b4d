"""As a program: worker.py TREE DEVICE THREADS. Makes forwards with the code of TREE, one for each line of its input.

A line names a size; the answer is a line of JSON: seconds, and some numbers of the result. Only what every revision to
be compared has is used of TREE.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

# Widths and pictures: the bundled model's, and two with a published head width. All of one window of four chunks.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"video_size_h": 64, "video_size_w": 64},
    "width_512": {
        "num_layers": 4,
        "hidden_size": 512,
        "ffn_hidden_size": 2048,
        "num_attention_heads": 8,
        "num_query_groups": 4,
        "kv_channels": 64,
        "video_size_h": 128,
        "video_size_w": 128,
    },
    "width_1024": {
        "num_layers": 3,
        "hidden_size": 1024,
        "ffn_hidden_size": 4096,
        "num_attention_heads": 8,
        "num_query_groups": 4,
        "kv_channels": 128,
        "video_size_h": 128,
        "video_size_w": 128,
    },
}
CHUNKS, TOLD = 4, 512


def make_forward(tree: str, device_name: str, overrides: dict[str, Any]) -> Callable[[], Any]:
    """A forward of the first four chunks of a video, with weights and inputs that depend on the sizes alone."""
    import torch

    from inference.config import load_config
    from inference.kv_cache import KVCache
    from inference.model.context import CachedAttention, Entry
    from inference.model.dit import Captions, VideoDiT
    from inference.sampler import kv_geometry, make_schedule

    device = torch.device(device_name)
    config = load_config(f"{tree}/configs/model/nano.json").with_overrides(num_frames=24 * CHUNKS, **overrides)
    generator = torch.Generator().manual_seed(0)
    dit = VideoDiT(config.model, distill=config.engine.distill)
    with torch.no_grad():
        for name, parameter in dit.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)
            elif not name.endswith("rope.bands"):
                parameter.fill_(1.0 if name.endswith("layer_norm.weight") else 0.0)
    dit = dit.to(device).eval()
    cache = KVCache(kv_geometry(config, device))
    cache.reset(make_schedule(config, 0))
    chunks = range(CHUNKS)
    side = config.runtime.video_size_h // 8
    latents = torch.randn(CHUNKS, 16, config.runtime.chunk_width, side, side, generator=generator).to(device)
    words = torch.randn(CHUNKS, 20, config.model.caption_channels, generator=generator).to(device)
    t = torch.linspace(0.2, 0.8, CHUNKS).to(device)

    @torch.no_grad()
    def forward() -> Any:
        context = CachedAttention(cache, [Entry(chunk) for chunk in chunks], "sdpa")
        frames = [config.runtime.chunk_width * chunk for chunk in chunks]
        out = dit(latents, t, Captions.of(list(words)), context, first_frames=frames, step_scalar=2.0)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return out

    return forward


def main(tree: str, device: str, threads: str) -> None:
    sys.path.insert(0, tree)
    import torch

    torch.set_num_threads(int(threads))
    forwards: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        size = line.strip()
        if size not in forwards:
            forwards[size] = make_forward(tree, device, SIZES[size])
        began = time.perf_counter()
        out = forwards[size]()
        seconds = time.perf_counter() - began
        values = out.flatten()[:: max(1, out.numel() // TOLD)].double().cpu().tolist()
        sys.stdout.write(json.dumps({"seconds": seconds, "values": values}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
