"""A CUDA device that does not exist, and models of published widths on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from inference.config import MagiConfig, load_config
from inference.model import attention
from inference.model.dit import VideoDiT
from inference.model.fused import FusedKernels
from inference.placement import host_memory
from tests.gpu.streams import Streams
from tests.gpu.watch import Watch
from tests.paths import CONFIGS

CUDA = torch.device("cuda", 0)


@contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[Watch]:
    """Inside, tensors are fake and may be on ``CUDA``; what is asked of it is watched."""
    streams = Streams()
    watch = Watch(streams, **options)
    cuda = torch.cuda
    # ``is_available`` stays false: where it is true, fake tensors would look for a driver.
    for name, value in {
        "device_count": lambda: 1,
        "get_device_capability": lambda device=None: (9, 0),
        "Stream": streams.new,
        "current_stream": streams.current,
        "stream": streams.use,
        "synchronize": lambda device=None: streams.main.synchronize(),
        "empty_cache": lambda: None,
    }.items():
        monkeypatch.setattr(cuda, name, value)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: None)
    monkeypatch.setattr(host_memory, "_lockable", lambda size: torch.empty(size, dtype=torch.uint8))
    monkeypatch.setattr(host_memory, "_lock", lambda memory, device: None)

    def sdpa(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, enable_gqa: bool = False) -> Tensor:
        assert q.device == k.device == v.device == CUDA and q.dtype == k.dtype == v.dtype == torch.bfloat16
        assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        assert enable_gqa or q.shape[1] == k.shape[1]
        return watch.attention(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", sdpa)
    forget = (attention.load_backend, attention._offsets, attention._present, attention._places)
    for cached in forget:
        cached.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), watch:
        yield watch
    for cached in forget:  # fake tensors are of no use outside
        cached.cache_clear()


def fused(watch: Watch) -> FusedKernels:
    """Kernels that read and write what the real ones do (``inference.model.kernels``), and compute nothing."""

    def gated_residual(x: Tensor, update: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return watch.kernel((x, update, gate, weight, bias), torch.empty_like(x))

    def norm_rotate(x: Tensor, weight: Tensor, bias: Tensor, eps: float, cos: Tensor, sin: Tensor, out: Tensor) -> None:
        assert x.dtype == out.dtype == torch.bfloat16 and cos.dtype == sin.dtype == torch.float32
        assert out.stride(-1) == 1 and x.is_contiguous() and cos.is_contiguous() and sin.is_contiguous()
        watch.kernel((x, weight, bias, cos, sin), out)

    def swiglu(x: Tensor) -> Tensor:
        return watch.kernel((x,), x.new_empty(*x.shape[:-1], x.shape[-1] // 2))

    def quantise(x: Tensor, divisor: Tensor, dtype: torch.dtype, largest: float) -> Tensor:
        return watch.kernel((x, divisor), torch.empty_like(x, dtype=dtype))

    return FusedKernels(gated_residual, norm_rotate, swiglu, quantise)


def published(name: str = "4.5B_distill", **overrides: Any) -> MagiConfig:
    """A published configuration, by default with three layers, of which the middle one may be fp8."""
    return load_config(CONFIGS / f"{name}.json").with_overrides(**{"num_layers": 3, "kv_offload": False} | overrides)


def transformer(
    config: MagiConfig, *, streamed: bool = False, fp8_matmul: str = "scaled_mm", kernels: FusedKernels | None = None
) -> VideoDiT:
    """A transformer of fake parameters; ``streamed`` ones begin in host memory and pass through the device."""
    with unset_fake_temporarily(), torch.device("meta"):
        engine, products = config.engine, {"fp8_matmul": fp8_matmul, "kernels": kernels}
        dit = VideoDiT(config.model, distill=engine.distill, fp8=engine.fp8_quant, **products)
    for prefix, module in list(dit.named_modules()):
        for name, old in list(module.named_parameters(recurse=False)):
            device = "cpu" if streamed and ".layers" in prefix else CUDA
            new = torch.empty(old.shape, dtype=old.dtype, device=device)
            setattr(module, name, nn.Parameter(new, requires_grad=False))
    return dit.eval()


@dataclass(frozen=True)
class Words:
    """Captions of different lengths for the chunks, and a null caption."""

    config: MagiConfig

    def packed_cond(self, chunk: int) -> Tensor:
        return torch.empty(50 + chunk % 4, self.config.model.caption_channels, device=CUDA)

    def packed_null(self) -> Tensor:
        return torch.empty(50, self.config.model.caption_channels, device=CUDA)
