"""The fp8 layer: its exact arithmetic, and torch's fp8 product against it."""

import pytest
import torch

from inference.model.fp8 import Fp8Linear, exact_product, resolve_fp8_matmul, scaled_mm_problem, scaled_product
from inference.pipeline import load_transformer
from tests.tiny import tiny_config, tiny_dit

CPU = torch.device("cpu")
on_this_cpu = pytest.mark.skipif(scaled_mm_problem(CPU) is not None, reason=str(scaled_mm_problem(CPU)))


def random_layer(inputs: int, outputs: int, *, per_channel: bool, matmul: str = "dequantise") -> Fp8Linear:
    torch.manual_seed(0)
    layer = Fp8Linear(inputs, outputs, per_channel=per_channel, matmul=matmul)
    layer.weight.data.copy_(torch.randn(1, outputs, inputs))
    layer.weight_scale.data.fill_(0.37)
    layer.input_scale.data.fill_(0.23)
    if layer.smooth_scale is not None:
        layer.smooth_scale.data.uniform_(0.1, 1)
    return layer


@pytest.mark.parametrize("per_channel", [False, True])
def test_dequantised_against_plain_arithmetic(per_channel: bool) -> None:
    layer = random_layer(16, 8, per_channel=per_channel)
    x = torch.randn(3, 16) * 50
    divisor = layer.smooth_scale[0] if per_channel else layer.input_scale
    quantised = (x / divisor).clamp(-448, 448).bfloat16().to(torch.float8_e4m3fn)
    expected = quantised.double() @ layer.weight[0].double().T * 0.23 * 0.37
    found = layer(x)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.double(), expected, rtol=2**-8, atol=1e-6)


@on_this_cpu
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("shape", [(2, 5, 48), (1, 48), (0, 48)])
def test_scaled_product_against_dequantised(per_channel: bool, shape: tuple[int, ...]) -> None:
    exact = random_layer(48, 32, per_channel=per_channel)
    fast = random_layer(48, 32, per_channel=per_channel, matmul="scaled_mm")
    x = torch.randn(shape) * 20  # some beyond what fp8 holds
    expected, found = exact(x), fast(x)
    assert fast.matmul == "scaled_mm"
    assert (found.shape, found.dtype) == (expected.shape, torch.bfloat16) == ((*shape[:-1], 32), torch.bfloat16)
    # One rounding to bfloat16 each, of sums in another order.
    assert torch.allclose(found.float(), expected.float(), rtol=2**-7, atol=1e-3)


@on_this_cpu
def test_the_scaled_product_scales_before_it_rounds() -> None:
    x, weight = torch.randn(64, 32).to(torch.float8_e4m3fn), torch.randn(16, 32).to(torch.float8_e4m3fn)
    scales = torch.tensor([1e-3]), torch.tensor([0.7])
    rounded_twice = ((x.float() @ weight.float().T).bfloat16() * scales[0] * scales[1]).bfloat16()
    exact = exact_product(x, weight, *scales)
    assert (scaled_product(x, weight, *scales) != exact).float().mean() < 0.02
    assert (rounded_twice != exact).float().mean() > 0.1


def test_widths_that_matrix_units_do_not_take_are_dequantised() -> None:
    layer = random_layer(24, 16, per_channel=False, matmul="scaled_mm")
    assert layer.matmul == "dequantise"
    assert torch.equal(layer(torch.ones(2, 24)), random_layer(24, 16, per_channel=False)(torch.ones(2, 24)))


def test_the_choice() -> None:
    assert resolve_fp8_matmul("auto", "cpu") == resolve_fp8_matmul("dequantise", "cpu") == "dequantise"
    if scaled_mm_problem(CPU) is None:
        assert resolve_fp8_matmul("scaled_mm", "cpu") == "scaled_mm"
    # A device without memory stands for one without the units: no product can be tried there.
    assert "torch's fp8 product fails on meta: RuntimeError" in scaled_mm_problem(torch.device("meta"))
    assert resolve_fp8_matmul("auto", "meta") == "dequantise"
    with pytest.raises(ValueError, match=r"fp8_matmul 'scaled_mm' cannot be used: .*; choose auto or dequantise"):
        resolve_fp8_matmul("scaled_mm", "meta")


def test_every_fp8_layer_of_a_transformer_is_told() -> None:
    config = tiny_config(fp8=True)
    for choice in ("dequantise", "scaled_mm"):
        dit = tiny_dit(config, fp8_matmul=choice)
        layers = [module for module in dit.modules() if isinstance(module, Fp8Linear)]
        assert len(layers) == 7  # q, qx, k, v, linear_proj, linear_fc1, linear_fc2 of the layer in the middle
        assert {layer.matmul for layer in layers} == {choice}


@pytest.mark.slow
@on_this_cpu
def test_the_configuration_says_how_a_transformer_computes() -> None:
    config = tiny_config(fp8=True)
    assert load_transformer(config, CPU).fp8_matmul == "dequantise"
    chosen = config.with_overrides(fp8_matmul="scaled_mm", attention_backend="eager", compile=True)
    dit = load_transformer(chosen, CPU)
    assert (dit.fp8_matmul, dit.backend) == ("scaled_mm", "eager")
    assert load_transformer(tiny_config().with_overrides(fp8_matmul="scaled_mm"), CPU).fp8_matmul is None
    with pytest.raises(ValueError, match="attention_backend 'flash2' cannot be used: "):
        load_transformer(config.with_overrides(attention_backend="flash2"), CPU)
