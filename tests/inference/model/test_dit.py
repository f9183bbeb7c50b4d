"""The transformer and its layers against naive versions, and the properties that the sampler relies on."""

import math

import pytest
import torch
from torch import Tensor

from inference.kv_cache import KVCache
from inference.model import products
from inference.model.context import CachedAttention, Entry
from inference.model.dit import DROPPED_ROW, Captions, VideoDiT
from inference.model.layers import (
    REFERENCE_ROUNDING,
    OnePlusLayerNorm,
    PatchEmbedder,
    Rope,
    TimestepEmbedder,
    rotate,
    sinusoid_frequencies,
)
from inference.sampler import kv_geometry, make_schedule
from tests.tiny import TinyCaptions, tiny_config, tiny_dit, tiny_noise


def chunks_of(noise: Tensor) -> Tensor:
    return torch.stack(noise[0].split(6, dim=1))


def forward(
    dit: VideoDiT, x: Tensor, entries: list[Entry], cache: KVCache, t: list[float], **options: object
) -> Tensor:
    captions = TinyCaptions(tiny_config())
    context = CachedAttention(cache, entries, "sdpa")
    packed = Captions.of([captions.packed_cond(entry.chunk) for entry in entries])
    first = [entry.chunk * 6 for entry in entries]
    with torch.no_grad():
        return dit(x, torch.tensor(t), packed, context, first_frames=first, step_scalar=4.0, **options)


def fresh_cache(chunks: int = 4) -> KVCache:
    config = tiny_config(num_frames=24 * chunks)
    cache = KVCache(kv_geometry(config, torch.device("cpu")))
    cache.reset(make_schedule(config, 0))
    return cache


def test_chunks_together_equal_chunks_one_after_the_other() -> None:
    dit, x = tiny_dit(tiny_config()), chunks_of(tiny_noise(3))
    t = [0.8, 0.4, 0.1]
    together = forward(dit, x, [Entry(0), Entry(1), Entry(2)], fresh_cache(), t)
    cache = fresh_cache()
    for i in range(3):
        alone = forward(dit, x[i : i + 1], [Entry(i)], cache, t[i : i + 1])
        assert torch.allclose(alone[0], together[i], atol=2e-5)


def test_a_chunk_sees_its_key_window_and_nothing_else() -> None:
    dit, x = tiny_dit(tiny_config()), chunks_of(tiny_noise(3))
    base = forward(dit, x, [Entry(0), Entry(1), Entry(2, key_start=1)], fresh_cache(), [0.5] * 3)
    changed = x.clone()
    changed[0] += 1
    out = forward(dit, changed, [Entry(0), Entry(1, key_start=1), Entry(2, key_start=1)], fresh_cache(), [0.5] * 3)
    window = forward(dit, x, [Entry(0), Entry(1, key_start=1), Entry(2, key_start=1)], fresh_cache(), [0.5] * 3)
    assert torch.allclose(out[1:], window[1:], atol=1e-5)  # chunk 0 is out of sight for both
    assert not torch.allclose(base[1], window[1], atol=1e-3)  # and would show if it were not
    assert not torch.allclose(base[2], window[2], atol=1e-5)


def test_an_entry_alone_reads_and_writes_no_cache() -> None:
    dit, x = tiny_dit(tiny_config()), chunks_of(tiny_noise(3))
    cache = fresh_cache()
    before = cache.memory.clone()
    out = forward(dit, x[:2], [Entry(0, role="alone"), Entry(1, role="alone")], cache, [0.5, 0.2])
    assert torch.equal(cache.memory.nan_to_num(), before.nan_to_num())
    single = forward(dit, x[1:2], [Entry(1, role="alone")], cache, [0.2])
    assert torch.allclose(out[1:], single, atol=1e-5)


def test_alone_entries_must_come_last() -> None:
    with pytest.raises(ValueError, match="must come last"):
        CachedAttention(fresh_cache(), [Entry(0, role="alone"), Entry(1)], "sdpa")


def test_time_is_absolute_and_the_inputs_all_matter() -> None:
    dit, x = tiny_dit(tiny_config()), chunks_of(tiny_noise(1))
    base = forward(dit, x, [Entry(0, role="alone")], fresh_cache(), [0.5])
    assert not torch.allclose(base, forward(dit, x, [Entry(0, role="alone")], fresh_cache(), [0.6]), atol=1e-3)
    dropped = forward(dit, x, [Entry(0, role="alone")], fresh_cache(), [0.5], adaln_row=DROPPED_ROW)
    assert not torch.allclose(base, dropped, atol=1e-3)


def test_a_distilled_model_insists_on_its_step_size() -> None:
    dit = tiny_dit(tiny_config())
    with pytest.raises(ValueError, match="needs step_scalar"):
        dit.condition(torch.tensor([0.5]), -2, None)
    base = tiny_dit(tiny_config(three_pass=True))
    assert torch.equal(base.condition(torch.tensor([0.5]), -2, None), base.condition(torch.tensor([0.5]), -2, 7.0))
    assert not torch.allclose(dit.condition(torch.tensor([0.5]), -2, 4.0), dit.condition(torch.tensor([0.5]), -2, 8.0))


def test_half_channels_are_doubled_and_rescaled() -> None:
    model = tiny_config().model.model_copy(
        update={"half_channel_vae": True, "in_channels": 32, "out_channels": 32, "x_rescale_factor": 0.1}
    )
    dit = VideoDiT(model, distill=True)
    x = chunks_of(tiny_noise(1))
    doubled = torch.cat([x, x], dim=1) * 0.1
    assert torch.equal(dit.embed(x), dit.x_embedder(doubled))
    out = dit(x, torch.tensor([0.5]), Captions(torch.zeros(0, 24), (0,)), _Alone(), first_frames=[0], step_scalar=4.0)
    assert out.shape == x.shape


class _Alone:
    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        return CachedAttention(fresh_cache(), [Entry(0, role="alone")], "sdpa").attend(layer, q, kv)


def test_patch_embedding_is_the_convolution() -> None:
    embedder = PatchEmbedder(16, 64, 2)
    x = torch.randn(2, 16, 6, 4, 8)
    expected = torch.nn.functional.conv3d(x, embedder.weight, stride=(1, 2, 2)).flatten(2).transpose(1, 2)
    assert torch.allclose(embedder(x), expected, atol=1e-5)


def test_one_plus_norm() -> None:
    norm = OnePlusLayerNorm(8, 1e-6, torch.float32)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    x = torch.randn(3, 8)
    normal = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(norm(x), normal * (norm.weight + 1) + norm.bias, atol=1e-5)
    assert norm(x.bfloat16()).dtype == torch.float32


def test_rotary_positions() -> None:
    rope = Rope(16)
    cos, sin = rope(torch.tensor([0, 12]), 6, 4, 8)
    assert cos.shape == (2, 6 * 4 * 8, 6)
    scale = math.sqrt(4 * 8 / 256)
    for entry, first in enumerate((0, 12)):
        for token in (0, 37, 191):
            frame, row, column = token // 32, token // 8 % 4, token % 8
            height = (row - 1.5) * (4 / scale - 1) / 3
            width = (column - 3.5) * (8 / scale - 1) / 7
            angles = torch.tensor([first + frame] * 2 + [height] * 2 + [width] * 2) * rope.bands.repeat(3)
            assert torch.allclose(cos[entry, token], angles.cos(), atol=1e-5)
            assert torch.allclose(sin[entry, token], angles.sin(), atol=1e-5)
    single = rope(torch.tensor([0]), 1, 1, 8)[0]
    assert torch.isfinite(single).all()


def test_rotation_keeps_lengths_and_the_last_quarter() -> None:
    rope = Rope(16)
    cos, sin = rope(torch.tensor([3]), 6, 4, 4)
    x = torch.randn(1, 96, 2, 16)
    y = rotate(x, cos, sin)
    assert torch.equal(y[..., 12:], x[..., 12:])
    assert torch.allclose(y[..., :6] ** 2 + y[..., 6:12] ** 2, x[..., :6] ** 2 + x[..., 6:12] ** 2, atol=1e-4)


def test_timestep_embedding_rounds_to_the_compute_dtype() -> None:
    exact, rounded = TimestepEmbedder(8, torch.float32), TimestepEmbedder(8, torch.bfloat16)
    rounded.load_state_dict(exact.state_dict())
    t = torch.tensor([0.123])
    frequencies = torch.tensor([10000 ** (-i / 128) for i in range(128)])
    angles = t * frequencies * 1000
    sinusoid = torch.cat([angles.cos(), angles.sin()])
    assert torch.allclose(exact(t)[0], exact.mlp(sinusoid), atol=1e-3)
    assert torch.allclose(rounded(t)[0], exact.mlp(sinusoid.bfloat16().float()), atol=1e-3)
    assert rounded(t).dtype == torch.float32


def test_timestep_frequencies_are_the_same_numbers_on_every_processor() -> None:
    # torch.exp in float32 gives 3, 6 or 2 of them otherwise, by the processor's vector units.
    exponents = -math.log(10000.0) * torch.arange(128, dtype=torch.float32) / 128
    nearest = [torch.tensor(math.exp(exponent), dtype=torch.float64).float() for exponent in exponents.tolist()]
    for index in REFERENCE_ROUNDING:
        nearest[index] = torch.nextafter(nearest[index], torch.tensor(1.0))
    assert torch.equal(sinusoid_frequencies(torch.device("cpu")), torch.stack(nearest))


def test_an_fp8_model_runs_and_keeps_its_outer_layers() -> None:
    config = tiny_config(fp8=True)
    dit = tiny_dit(config)
    kinds = [type(layer.mlp.linear_fc2).__name__ for layer in dit.videodit_blocks.layers]
    assert kinds == ["Linear", "Fp8Linear", "Linear"]
    cache = KVCache(kv_geometry(config, torch.device("cpu")))
    cache.reset(make_schedule(config, 0))
    x = chunks_of(tiny_noise(2))
    out = forward(dit, x, [Entry(0), Entry(1)], cache, [0.6, 0.2])
    assert out.dtype == torch.float32 and torch.isfinite(out).all()


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16"])
def test_results_written_over_what_is_used_up_are_the_same_numbers(fp8: bool, gated: bool, dtype: str) -> None:
    config = tiny_config(fp8=fp8).with_overrides(gated_linear_unit=gated, params_dtype=dtype)
    dit, words = tiny_dit(config), TinyCaptions(config)
    captions = Captions.of([words.packed_cond(chunk) for chunk in range(2)])

    def velocities() -> Tensor:
        t = torch.tensor([0.7, 0.2])
        return dit(chunks_of(tiny_noise(2)), t, captions, _Alone(), first_frames=[0, 6], step_scalar=2.0)

    with torch.no_grad():
        in_place = velocities()
    assert torch.equal(in_place, velocities().detach())  # where gradients are taken nothing is written over


@pytest.mark.parametrize("gated", [False, True])
def test_a_feed_forward_in_blocks_of_rows_is_the_same(monkeypatch: pytest.MonkeyPatch, gated: bool) -> None:
    config = tiny_config().with_overrides(gated_linear_unit=gated)
    layer = tiny_dit(config).videodit_blocks.layers[0].mlp
    x = torch.randn(2, 37, config.model.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = layer(x, None)
        width = layer.linear_fc1.out_features
        monkeypatch.setattr(products, "HIDDEN_BYTES", 10 * width * 4)
        assert products.hidden_blocks(74, width, 4) == 8
        seen = []
        layer.linear_fc1.register_forward_hook(lambda module, inputs, out: seen.append(len(inputs[0])))
        assert torch.allclose(layer(x, None), whole, atol=1e-6)
    assert seen == [10, 10, 9, 9, 9, 9, 9, 9]
    layer(x, None)
    assert len(seen) == 9  # where gradients are taken nothing is in blocks
