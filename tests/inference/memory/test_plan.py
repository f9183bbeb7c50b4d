"""Automatic choices: nothing is moved where it fits, the cheapest first where not, and the user's word stands."""

from dataclasses import replace

import pytest
import torch

from inference.config import load_config
from inference.memory.estimate import MemoryEstimate, TransformerSize
from inference.memory.plan import Placement, device_parts, device_peak, plan_memory, usable_bytes
from inference.memory.stages import Peak
from inference.pipeline import place_run
from tests.paths import CONFIGS
from tests.tiny import tiny_config

MIB = 2**20
SIZE = MemoryEstimate(
    transformer=TransformerSize(10 * MIB, (100 * MIB,) * 10),
    text_encoder=2000 * MIB,
    vae=200 * MIB,
    kv_rows=500 * MIB,
    kv_tables=0,
    kv_layer=50 * MIB,
    captions=MIB,
    latents=MIB,
    activations=Peak(300 * MIB, "somewhere"),
    decode=Peak(100 * MIB, "somewhere"),
)
AUTO = tiny_config(t5_device="cuda").with_overrides(kv_offload="auto")
EVERYTHING = 1010 + 2000 + 200 + 500 + 2 + 400  # denoising and decoding at once


def free_for(usable: int) -> int:
    """Free bytes of which ``usable`` MiB can be planned with."""
    free = int((usable * MIB + 2**28) / 0.95) + 2
    assert usable_bytes(free) >= usable * MIB > usable_bytes(free - 3 * MIB)
    return free


@pytest.mark.parametrize(
    ("usable", "expected"),
    [
        (EVERYTHING, Placement()),
        (EVERYTHING - 1, Placement(offload_t5=True)),
        # The text encoder's visit, beside transformer and autoencoder, before there is a cache.
        (1010 + 2000 + 200 + 2, Placement(offload_t5=True)),
        (1010 + 2000 + 2, Placement(offload_t5=True, offload_vae=True)),
        (1010 + 2000 + 1, Placement(offload_t5=True, offload_vae=True, stream_weights=True)),
        (10, Placement(True, True, True, True)),
    ],
)
def test_the_first_placement_that_fits(usable: int, expected: Placement) -> None:
    found = plan_memory(AUTO, SIZE, free_for(usable))
    assert found.placement == expected
    assert found.fits == (usable > 10)
    assert found.to_json_dict()["placement"] == vars(expected)


def test_keys_and_values_leave_before_the_weights() -> None:
    without_t5 = replace(SIZE, text_encoder=0)
    found = plan_memory(AUTO, without_t5, free_for(1010 + 100 + 2 + 300))
    assert found.placement == Placement(True, True, kv_offload=True)
    assert found.device_bytes == (1010 + 100 + 2 + 300) * MIB
    assert found.host_bytes == 700 * MIB
    parts = device_parts(AUTO, SIZE, Placement(True, True, True, True))
    assert parts["transformer"] == 210 * MIB and parts["KV cache"] == 100 * MIB
    assert parts["stage: decoding"] == 300 * MIB


def test_what_the_user_says_stands_and_a_cpu_moves_nothing() -> None:
    said = AUTO.with_overrides(stream_weights=True, offload_t5=False)
    assert plan_memory(said, SIZE, free_for(10_000)).placement == Placement(stream_weights=True)
    assert not plan_memory(said, SIZE, free_for(10)).placement.offload_t5
    anywhere = plan_memory(AUTO, SIZE, None)
    assert anywhere.placement == Placement() and anywhere.fits and anywhere.usable is None
    in_turn = AUTO.with_overrides(overlap_decode=False)
    assert device_peak(AUTO, SIZE, Placement()) - device_peak(in_turn, SIZE, Placement()) == 100 * MIB


@pytest.mark.parametrize(("gib", "fits", "streamed"), [(80, True, False), (12, True, True), (2, False, True)])
def test_the_published_model_on_cards(gib: int, fits: bool, streamed: bool, caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(CONFIGS / "4.5B_distill.json").with_overrides(kv_offload="auto")
    settled, found = place_run(config, torch.device("cuda"), gib * 2**30)
    assert (found.fits, found.placement.stream_weights) == (fits, streamed)
    assert vars(found.placement) == {name: getattr(settled.engine, name) for name in vars(found.placement)}
    assert ("scripts/check_model.py" in caplog.text) == (not fits)


@pytest.mark.parametrize("frames", [1, 5, 25])
def test_the_shortest_videos_are_planned_like_any(frames: int) -> None:
    config = tiny_config(num_frames=frames).with_overrides(kv_offload="auto")
    settled, found = place_run(config, torch.device("cuda"), 2**34)
    assert settled.runtime.num_frames == frames and found.fits
    assert settled.engine.kv_offload is False
