"""Models that come to the device for a visit: no number changes, the memory is given back, and who decides."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from inference.config import MagiConfig, load_config
from inference.pipeline import MagiPipeline, Sample, resident_bytes
from inference.residency import MemoryBudget, Residency, module_bytes, should_offload
from inference.text_features import PromptEncoder
from tests.tiny import tiny_config, tiny_dit

CPU = torch.device("cpu")


class CopiedBytes(TorchDispatchMode):
    """Counts what is copied from device to device (here: from CPU to CPU)."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self.total += result.numel() * result.element_size()
        return result


def addresses(module: nn.Module) -> list[int]:
    return [tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())]


def tied_model() -> nn.Module:
    """Two names for one weight, and a buffer that no state dict has."""
    model = nn.ModuleDict({"first": nn.Linear(64, 64), "second": nn.Linear(64, 64)})
    model["second"].weight = model["first"].weight
    model.register_buffer("scale", torch.ones(64), persistent=False)
    return model.requires_grad_(False)


BYTES = 4 * (64 * 64 + 3 * 64)


def test_a_visit_uses_copies_of_the_same_values_and_leaves_the_originals() -> None:
    model = tied_model()
    home, values = addresses(model), [tensor.clone() for tensor in model.parameters()]
    residency, x = Residency(model, CPU, offload=True), torch.randn(2, 64)
    expected = model["second"](model["first"](x))
    with CopiedBytes() as copied, residency.visit():
        assert copied.total == module_bytes(model) == BYTES
        assert not set(addresses(model)) & set(home)
        assert all(torch.equal(tensor, value) for tensor, value in zip(model.parameters(), values, strict=True))
        assert model["first"].weight is model["second"].weight
        assert torch.equal(model["second"](model["first"](x)), expected)
    assert addresses(model) == home and copied.total == BYTES


def test_a_failed_visit_leaves_the_originals_too() -> None:
    model = tied_model()
    home = addresses(model)
    with pytest.raises(RuntimeError, match="inside"), Residency(model, CPU, offload=True).visit():
        raise RuntimeError("inside")
    assert addresses(model) == home


def test_what_stays_is_not_copied() -> None:
    model = tied_model()
    home = addresses(model)
    with CopiedBytes() as copied, Residency(model, CPU).visit():
        assert addresses(model) == home
    assert copied.total == 0


def test_what_fits_stays() -> None:
    assert not should_offload(800, 1000) and should_offload(801, 1000)


def test_the_budget_is_spent_in_order() -> None:
    gpu = torch.device("meta")  # any device that is no CPU, with nothing on it
    budget = MemoryBudget(gpu, taken=1000, free=int((1000 + 1.5 * BYTES) / 0.8))
    assert budget.place("first", tied_model_on(gpu), gpu, "auto").offload is False
    assert budget.place("second", tied_model_on(gpu), gpu, "auto").offload is True
    assert budget.taken == 1000 + BYTES
    assert budget.place("third", tied_model_on(gpu), gpu, False).offload is False
    assert MemoryBudget(gpu, 0, free=10 * BYTES).place("x", tied_model_on(gpu), gpu, True).offload is True


def tied_model_on(device: torch.device) -> nn.Module:
    with device:
        return tied_model()


def test_what_the_transformer_and_its_cache_take() -> None:
    config = tiny_config(num_frames=48)  # two layers, as many as are kept of what lies in host memory
    held = resident_bytes(config, CPU, 1)
    # Chunks, tokens of a chunk, layers, groups, keys and values, head width, bytes of a number.
    kv = 2 * config.tokens_per_chunk * 2 * 4 * 2 * 8 * 4
    assert held == module_bytes(tiny_dit(config)) + kv
    deep = MagiConfig.from_json_dict(deeper(config.to_json_dict(), 6))
    layer = (resident_bytes(deep, CPU, 1) - held) // 4
    away = deep.with_overrides(kv_offload=True, stream_weights=True)
    assert resident_bytes(away, CPU, 1) == held and layer > kv // 2
    assert resident_bytes(deep.with_overrides(kv_offload=True), CPU, 1) == held + 4 * (layer - kv // 2)


def deeper(contents: dict[str, Any], layers: int) -> dict[str, Any]:
    return contents | {"model_config": contents["model_config"] | {"num_layers": layers}}


@pytest.mark.parametrize("setting", ["auto", True, False])
def test_nothing_moves_on_a_cpu(setting: Any) -> None:
    model = tied_model()
    home = addresses(model)
    residency = MemoryBudget(CPU, taken=10**18).place("model", model, CPU, setting)
    with residency.visit():
        assert not residency.offload and addresses(model) == home


def test_a_video_is_the_same_with_both_models_off_the_device(checkpoint: Path) -> None:
    config = load_config(checkpoint / "distill.json").with_overrides(num_frames=28)
    pipeline = MagiPipeline.load(config, CPU)
    prefix = torch.randint(0, 255, (8, 32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    sample = Sample("a cat", prefix)
    expected = torch.cat(list(pipeline.frames(sample)))

    t5, _ = pipeline.t5.ready()
    away = Residency(t5.model, CPU, offload=True)
    pipeline.t5 = PromptEncoder(lambda: (t5, away))
    pipeline.vae.residency = Residency(pipeline.vae.vae, CPU, offload=True)
    modules = t5.model, pipeline.vae.vae
    home = [addresses(module) for module in modules]
    with CopiedBytes() as copied:
        found = torch.cat(list(pipeline.frames(sample)))
    assert torch.equal(found, expected)
    assert home == [addresses(module) for module in modules]
    assert pipeline.placement()["t5"] == "in host memory, on cpu while it is used"
    # The text encoder once, the VAE for the prefix and for each of two chunks.
    assert copied.total >= module_bytes(t5.model) + 3 * module_bytes(pipeline.vae.vae)
