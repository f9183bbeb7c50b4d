"""What the estimates say is what is measured, part by part; and the measuring itself."""

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.memory.live import LiveMemory, storage_bytes
from harness.memory.parts import compare_offloaded, compare_parts, load_models, measure_forward
from harness.methods import read_method
from inference.config import load_config
from inference.memory.stages import ForwardShape, forward_peak
from tests.paths import ROOT
from tests.tiny import tiny_config, tiny_dit

SLOW = str(ROOT / "configs/method/flowcache_slow.yaml")
TOLERANCE = 0.1


def test_live_memory_counts_what_is_made_and_forgets_what_is_freed() -> None:
    before = torch.zeros(100, 100)
    with LiveMemory() as memory:
        made = torch.ones(1000, 100)
        assert memory.live == made.nbytes
        product = made @ before
        view = product.view(-1)[3:]
        part = before[:10]
        assert memory.live == 2 * made.nbytes
        del made, product
        assert memory.live == view.untyped_storage().nbytes() == 400_000
        del view
        assert memory.live == 0 and memory.peak == 800_000
        memory.reset_peak()
        before.add_(1)
        assert memory.peak == 0
    assert storage_bytes(iter([before, part])) == before.nbytes


@pytest.mark.parametrize(
    ("source", "method", "overrides"),
    [
        ("distill.json", None, {}),
        ("distill.json", SLOW, {"num_frames": 168, "video_size_w": 64, "num_steps": 16}),
        ("base.json", None, {"video_size_h": 64}),
        (str(ROOT / "configs/model/nano.json"), SLOW, {"num_frames": 144, "num_steps": 16}),
    ],
)
def test_every_part_is_estimated_within_ten_percent(
    checkpoint: Path, source: str, method: str | None, overrides: dict[str, Any]
) -> None:
    config = load_config(checkpoint / source).with_overrides(**overrides)
    # As much is remembered as can be where all that may be reused is, in runs of some length.
    settings = {} if method is None else {"rel_l1_thresh": 5.0}
    parts = compare_parts(config, load_models(config), read_method(method, settings), "a red ball")
    assert len(parts) == 8
    ratios = {name: size.ratio for name, size in parts.items()}
    assert ratios == pytest.approx(dict.fromkeys(ratios, 1.0), abs=TOLERANCE)


def test_a_cache_that_need_not_be_squeezed_holds_keys_and_values_alone() -> None:
    config = load_config(ROOT / "configs/model/nano.json").with_overrides(num_frames=96, num_steps=4)
    cache = compare_parts(config, load_models(config), read_method(SLOW, {}), "a red ball")["KV cache"]
    assert cache.measured == cache.estimated == 4 * 96 * 5 * 4 * 2 * 24 * 4


@pytest.mark.parametrize("method", [None, SLOW])
def test_what_is_left_on_the_device_is_estimated_within_ten_percent(method: str | None) -> None:
    config = load_config(ROOT / "configs/model/nano.json").with_overrides(num_frames=144, num_steps=4)
    settings = read_method(method, {})
    parts = compare_offloaded(config, settings)
    ratios = {name: size.ratio for name, size in parts.items()}
    assert ratios == pytest.approx(dict.fromkeys(ratios, 1.0), abs=TOLERANCE)
    whole = compare_parts(config, load_models(config), settings, "a red ball")
    for name, size in parts.items():  # two layers of five
        assert size.measured < 0.6 * whole[name.partition(",")[0]].measured


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ({}, {"params_dtype": "torch.bfloat16"}),
        ({"groups": 1}, {"ffn_hidden_size": 512}),
        ({}, {"ffn_hidden_size": 512, "gated_linear_unit": True, "params_dtype": "torch.bfloat16"}),
        ({"fp8": True}, {}),
        ({"fp8": True}, {"ffn_hidden_size": 512, "gated_linear_unit": True}),
    ],
)
@pytest.mark.parametrize("shape", [ForwardShape(5, 24, 25), ForwardShape(2, 24, 100)])
def test_the_forward_of_every_kind_of_layer(kind: dict[str, Any], changes: dict[str, Any], shape: ForwardShape) -> None:
    config = tiny_config(**kind).with_overrides(**changes)
    measured = measure_forward(tiny_dit(config), config, shape)
    fp8 = "dequantise" if config.engine.fp8_quant else None
    expected = forward_peak(config.model, shape, device=torch.device("cpu"), fp8=fp8)
    assert expected.bytes == pytest.approx(measured, rel=TOLERANCE)
