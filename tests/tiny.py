"""A transformer small enough for arithmetic tests, with random weights, and captions for it."""

from typing import Any

import torch

from inference.config import MagiConfig
from inference.model.dit import VideoDiT

MODEL = {
    "model_name": "videodit_ardf",
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_attention_heads": 8,
    "num_query_groups": 4,
    "kv_channels": 8,
    "layernorm_epsilon": 1e-6,
    "apply_layernorm_1p": True,
    "x_rescale_factor": 1,
    "half_channel_vae": False,
    "params_dtype": "torch.float32",
    "patch_size": 2,
    "t_patch_size": 1,
    "in_channels": 16,
    "out_channels": 16,
    "cond_hidden_ratio": 0.25,
    "caption_channels": 24,
    "caption_max_length": 56,
    "xattn_cond_hidden_ratio": 1.0,
    "cond_gating_ratio": 1.0,
    "gated_linear_unit": False,
}
RUNTIME = {
    "cfg_number": 1,
    "cfg_t_range": [0.0, 0.0217, 0.1, 0.3, 0.999],
    "prev_chunk_scales": [1.5, 1.5, 1.5, 1.0, 1.0],
    "text_scales": [7.5, 7.5, 7.5, 0.0, 0.0],
    "noise2clean_kvrange": [],
    "clean_chunk_kvrange": 1,
    "clean_t": 0.9999,
    "seed": 1234,
    "num_frames": 120,
    "video_size_h": 32,
    "video_size_w": 32,
    "num_steps": 8,
    "window_size": 4,
    "fps": 24,
    "chunk_width": 6,
    "load": None,
    "t5_pretrained": None,
    "t5_device": "cpu",
    "vae_pretrained": None,
    "scale_factor": 0.18215,
    "temporal_downsample_factor": 4,
}
ENGINE = {
    "distributed_backend": "nccl",
    "distributed_timeout_minutes": 15,
    "pp_size": 1,
    "cp_size": 1,
    "cp_strategy": "none",
    "ulysses_overlap_degree": 1,
    "fp8_quant": False,
    "distill_nearly_clean_chunk_threshold": 0.3,
    "shortcut_mode": "8,16,16",
    "distill": True,
    "kv_offload": False,
    "enable_cuda_graph": False,
}


def tiny_config(three_pass: bool = False, groups: int = 4, fp8: bool = False, **runtime: Any) -> MagiConfig:
    """One-pass by default; ``runtime`` replaces fields of that section."""
    model = MODEL | {"num_query_groups": groups, "params_dtype": "torch.bfloat16" if fp8 else "torch.float32"}
    return MagiConfig.from_json_dict(
        {
            "model_config": model | ({"num_layers": 3} if fp8 else {}),
            "runtime_config": RUNTIME | {"cfg_number": 3 if three_pass else 1} | runtime,
            "engine_config": ENGINE | {"distill": not three_pass, "fp8_quant": fp8},
        }
    )


def tiny_dit(config: MagiConfig, seed: int = 0, **options: Any) -> VideoDiT:
    """Random weights large enough that every part of the model shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    dit = VideoDiT(config.model, distill=config.engine.distill, fp8=config.engine.fp8_quant, **options)
    with torch.no_grad():
        for name, parameter in dit.named_parameters():
            if name == "rope.bands":
                continue
            values = torch.randn(parameter.shape, generator=generator)
            scale = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(values * scale + (1.0 if name.endswith("_scale") else 0.0))
    return dit.eval()


class TinyCaptions:
    """Different caption tokens for every chunk, and a null caption."""

    def __init__(self, config: MagiConfig, tokens: int = 5, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        width = config.model.caption_channels
        self.text = torch.randn(64, tokens, width, generator=generator)
        self.null = torch.randn(3, width, generator=generator)

    def packed_cond(self, chunk: int) -> torch.Tensor:
        return self.text[chunk]

    def packed_null(self) -> torch.Tensor:
        return self.null


def tiny_noise(chunks: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(1, 16, chunks * 6, 4, 4, generator=torch.Generator().manual_seed(seed))
