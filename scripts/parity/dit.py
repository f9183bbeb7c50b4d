"""Family ``dit_forward_*``: single forwards of the transformer, with every recorded activation and the stored keys
and values.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn

from inference.config import PROJECTION_SHARDS, MagiConfig
from inference.model.attention import attend, resolve_backend
from inference.model.dit import CONDITIONAL_ROW, DROPPED_ROW, Captions, VideoDiT
from inference.sampler import make_schedule
from scripts.parity.common import (
    AS_RECORDED,
    RELATIVE_TOLERANCE,
    CheckResult,
    Setup,
    equal,
    guarded,
    listed_cases,
    read_json,
    read_tensors,
    relative_error,
)

FAMILY = "dit_forward"
INDEX = "dit_forward_index.json"
# bfloat16 was recorded with exact attention, which the eager back end reproduces; what is left is the order of sums
# in float32.
BFLOAT16_TOLERANCE = 1e-2
# What was recorded in float32 and is computed in bfloat16: a sum of roundings, through all layers.
ROUNDED_TOLERANCE = 5e-2


def claims(name: str) -> bool:
    return name.startswith("dit_") and name.endswith((".safetensors", ".json"))


def read_config(directory: Path, case: dict) -> MagiConfig:
    """The configuration of a case: its file, with the sections that the index itself gives, and its dtype."""
    raw = read_json(directory / case["config"])
    for section in ("runtime_config", "engine_config"):
        raw[section] = case.get(section, raw[section])
    if "params_dtype" in case:
        raw["model_config"]["params_dtype"] = f"torch.{case['params_dtype']}"
    return MagiConfig.model_validate(raw)


def load_model(directory: Path, case: dict, setup: Setup = AS_RECORDED) -> tuple[VideoDiT, MagiConfig]:
    """The transformer of a case with its weights."""
    config = read_config(directory, case if setup.dtype is None else case | {"params_dtype": setup.dtype})
    backend = resolve_backend(setup.backend, setup.device, config.model.dtype, config.model.kv_channels)
    dit = VideoDiT(config.model, distill=config.engine.distill, fp8=config.engine.fp8_quant, backend=backend)
    dit.load_state_dict(load_file(str(directory / case["weights"])), strict=True)
    return dit.to(setup.device).eval(), config


class _ExplicitRanges:
    """Attention of a window behind seeded keys, each chunk to a given range of tokens."""

    def __init__(self, seeded: list[Tensor], ranges: list[list[int]], backend: str) -> None:
        self.seeded = seeded
        self.ranges = ranges
        self.backend = backend
        self.stored: dict[int, Tensor] = {}

    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        fresh = kv.flatten(0, 1)
        self.stored[layer] = torch.cat([self.seeded[layer], fresh]) if self.seeded else fresh
        outputs = []
        for i, (start, end) in enumerate(self.ranges):
            outputs.append(attend(q[i : i + 1], self.stored[layer][None, start:end], self.backend))
        return torch.cat(outputs)


def _recorders(dit: VideoDiT, seen: dict[str, Tensor]) -> list[torch.utils.hooks.RemovableHandle]:
    """Hooks that collect the activations the reference recorded, in the reference's layout."""

    def keep(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, tuple, Tensor], None]:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            seen.setdefault(name, change(output.clone()))  # what comes next may write over it

        return hook

    def tokens(x: Tensor) -> Tensor:
        return x.flatten(0, 1)[:, None]

    def split_attention(name: str) -> Callable[[nn.Module, tuple], None]:
        def hook(module: nn.Module, inputs: tuple) -> None:
            both = rearrange(inputs[0], "e n (s two f) -> two (e n) 1 (s f)", two=2, s=PROJECTION_SHARDS)
            seen[f"{name}.core_attn"], seen[f"{name}.cross_attn"] = both

        return hook

    handles = [
        dit.t_embedder.register_forward_hook(keep("act.t_embedder_first_call", lambda x: x)),
        dit.y_embedder.y_proj_adaln.register_forward_hook(keep("act.y_adaln", lambda x: x[None, None])),
        dit.videodit_blocks.final_layernorm.register_forward_hook(keep("act.final_layernorm", tokens)),
        dit.final_linear.linear.register_forward_hook(keep("act.final_linear", tokens)),
        dit.x_embedder.register_forward_hook(keep("act.x_embedder", lambda x: x)),
    ]
    for index, layer in enumerate(dit.videodit_blocks.layers):
        name = f"act.layer{index}"
        handles.append(
            layer.ada_modulate_layer.proj.register_forward_hook(keep(f"{name}.ada_modulate", lambda x: x[None]))
        )
        handles.append(layer.self_attention.linear_proj.register_forward_pre_hook(split_attention(name)))
        handles.append(layer.mlp.register_forward_hook(keep(f"{name}.mlp", tokens)))
        handles.append(layer.register_forward_hook(keep(f"{name}.out", tokens)))
    return handles


def run_case(directory: Path, case: dict, data: dict[str, Tensor], setup: Setup) -> dict[str, Tensor]:
    """Everything that a case's file lists under ``out`` and ``act``, computed."""
    dit, config = load_model(directory, case, setup)
    chunks, width = case["chunks"], config.runtime.chunk_width
    latents = rearrange(data["in.x"], "1 c (e t) h w -> e c t h w", e=chunks)
    mask = data["in.mask_first64"][:, 0].bool()
    captions = Captions.of([data["in.y_first64"][i, 0][mask[i]] for i in range(chunks)])
    row = DROPPED_ROW if case["caption_dropout"] else CONDITIONAL_ROW
    runtime = config.runtime.model_copy(update={"num_steps": case["num_steps"]})
    schedule = make_schedule(config.model_copy(update={"runtime": runtime}), 0)
    scalar = schedule.step_scalar(0) if case["step_interval"] == 1.0 else case["num_steps"] / 4 * 2
    if case["num_steps"] == 12:
        scalar = 4 / case["step_interval"] * 2
    seeded = [data[key].to(dit.dtype) for key in sorted(data) if key.startswith("in.kv_layer")]
    context = _ExplicitRanges(seeded, data["in.kv_range_tokens"].tolist(), dit.backend)
    first = [(case["slice_point"] + i) * width for i in range(chunks)]

    seen: dict[str, Tensor] = {}
    handles = _recorders(dit, seen)
    t = data["in.t"][0]
    with torch.no_grad():
        out = dit(latents, t, captions, context, first_frames=first, adaln_row=row, step_scalar=scalar)
        seen["act.y_xattn"] = dit.y_embedder.tokens(data["in.y_first64"])
        seen["act.condition"] = dit.condition(t, row, scalar)[None]
    for handle in handles:
        handle.remove()
    rows, columns = latents.shape[-2] // 2, latents.shape[-1] // 2
    cos, sin = dit.rope(torch.tensor([0.0]), (case["slice_point"] + chunks) * width, rows, columns)
    seen["act.rope_full_sin_then_cos"] = torch.cat([sin, cos], dim=-1)[0]
    seen["act.x_embedder"] = rearrange(seen["act.x_embedder"], "e (t h w) d -> 1 d (e t) h w", h=rows, w=columns)
    seen["out"] = rearrange(out, "e c t h w -> 1 c (e t) h w")
    for layer, stored in context.stored.items():
        seen[f"out.kv_layer{layer}"] = stored
    return seen


def check(directory: Path, setup: Setup = AS_RECORDED) -> Iterator[CheckResult]:
    for name, case in listed_cases(directory, FAMILY, INDEX, ""):
        if isinstance(case, CheckResult):
            yield case
            continue
        yield from guarded(FAMILY, name, partial(_check_case, name, case, directory, setup))


def _check_case(name: str, case: dict, directory: Path, setup: Setup) -> Iterator[CheckResult]:
    data = read_tensors(directory / f"{name}.safetensors", setup.device)
    tolerance = BFLOAT16_TOLERANCE if case.get("params_dtype") == "bfloat16" else RELATIVE_TOLERANCE
    if setup.dtype is not None:
        tolerance = ROUNDED_TOLERANCE
    yield from _compare(name, data, run_case(directory, case, data, setup), tolerance)
    tokens = data["in.x"][0, 0].numel() // 4 // case["chunks"]
    yield equal(FAMILY, name, "latent_hw", list(data["in.x"].shape[-2:]), case["latent_hw"])
    ranges = [[tokens * bound for bound in window] for window in case["kv_range_chunks"]]
    yield equal(FAMILY, name, "in.kv_range_tokens", data["in.kv_range_tokens"].tolist(), ranges)
    yield equal(
        FAMILY, name, "kv_cache_seeded", any(key.startswith("in.kv_layer") for key in data), case["kv_cache_seeded"]
    )


def _compare(name: str, data: dict[str, Tensor], seen: dict[str, Tensor], tolerance: float) -> Iterator[CheckResult]:
    for key in sorted(data):
        if key.startswith("in."):
            continue
        if key not in seen:
            yield CheckResult(FAMILY, name, key, float("inf"), 0, "nothing of ours to compare it with")
            continue
        yield CheckResult(FAMILY, name, key, relative_error(seen[key], data[key]), tolerance)
