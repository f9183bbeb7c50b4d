"""Models that come to the device for a visit: no number changes, the memory is given back, and who decides."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from inference.config import load_config
from inference.pipeline import MagiPipeline, Sample
from inference.placement.residency import Residency, module_bytes, place
from inference.text.features import PromptEncoder

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


@pytest.mark.parametrize(("setting", "offload"), [("auto", False), (False, False), (True, True)])
def test_the_setting_says_whether_a_model_stays(setting: Any, offload: bool) -> None:
    gpu = torch.device("meta")  # any device that is no CPU, with nothing on it
    with gpu:
        model = tied_model()
    assert place("model", model, gpu, setting).offload is offload


@pytest.mark.parametrize("setting", ["auto", True, False])
def test_nothing_moves_on_a_cpu(setting: Any) -> None:
    model = tied_model()
    home = addresses(model)
    residency = place("model", model, CPU, setting)
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
