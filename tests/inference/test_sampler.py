"""The denoising loop: against a naive sampler written here, and its promises about prefixes, order and state."""

from functools import partial

import pytest
import torch
from torch import Tensor

from inference.config import MagiConfig
from inference.kv_cache import KVCache
from inference.model.attention import attend
from inference.model.dit import CONDITIONAL_ROW, DROPPED_ROW, Captions, VideoDiT
from inference.reuse import NoMemory, Reuse
from inference.sampler import Sampler, kv_geometry, make_schedule
from inference.schedule import Step
from tests.tiny import TinyCaptions, tiny_config, tiny_dit, tiny_noise


def run(config: MagiConfig, prefix: Tensor | None = None, chunks: int = 5, **options: object) -> dict[int, Tensor]:
    sampler = Sampler(tiny_dit(config), config, **options)
    return {c.number: c.latents for c in sampler.run(tiny_noise(chunks), TinyCaptions(config), prefix)}


class FullAttention:
    """Entries of one forward, each attending to all up to itself; no cache at all."""

    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        return torch.cat([attend(q[i : i + 1], kv[: i + 1].flatten(0, 1)[None], "eager") for i in range(len(q))])


class LonelyAttention:
    """Every entry sees itself."""

    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        return attend(q, kv, "eager")


@torch.no_grad()
def _naive_forward(
    dit: VideoDiT,
    latents: Tensor,
    t: Tensor,
    scalar: float,
    context: FullAttention | LonelyAttention,
    texts: list[Tensor],
    row: int,
    first: list[int],
    part: slice = slice(None),
) -> Tensor:
    captions = Captions.of(texts)
    return dit(latents[part], t[part], captions, context, first_frames=first, adaln_row=row, step_scalar=scalar)


def naive_video(config: MagiConfig, dit: VideoDiT, noise: Tensor, captions: TinyCaptions) -> list[Tensor]:
    """MAGI-1 with full history and without any cache: every finished chunk is encoded anew, clean, at every step.

    Correct because a finished chunk's keys depend on earlier chunks only.
    """
    schedule = make_schedule(config, 0)
    x = list(noise[0].split(6, dim=1))
    for step in schedule.steps:
        clean = list(range(step.chunks[0]))
        scalar = schedule.step_scalar(step.k)
        entries = [*clean, *step.chunks]
        t = torch.tensor([config.runtime.clean_t] * len(clean) + [entry.t for entry in step.window])
        text = [captions.packed_null()] * len(clean) + [captions.packed_cond(chunk) for chunk in step.chunks]
        latents = torch.stack([x[chunk] for chunk in entries])
        frames = [chunk * 6 for chunk in entries]
        null = [captions.packed_null()] * len(entries)
        call = partial(_naive_forward, dit, latents, t, scalar)
        window = slice(len(clean), None)
        conditional = call(FullAttention(), text, CONDITIONAL_ROW, frames)[window]
        if config.runtime.cfg_number == 3:
            previous = call(FullAttention(), null, DROPPED_ROW, frames)[window]
            alone = call(LonelyAttention(), null[window], DROPPED_ROW, [0] * len(step.chunks), window)
        else:
            first = slice(len(clean), len(clean) + 1)
            alone = call(LonelyAttention(), text[first], CONDITIONAL_ROW, [step.chunks[0] * 6], first)
        for i, entry in enumerate(step.window):
            if config.runtime.cfg_number == 3:
                level = sum(entry.t > bound - 1e-7 for bound in config.runtime.cfg_t_range[1:])
                p, c = config.runtime.prev_chunk_scales[level], config.runtime.text_scales[level]
                velocity = (1 - p) * alone[i] + (p - c) * previous[i] + c * conditional[i]
            else:
                past = i == 0 and entry.t > 0.3
                velocity = 0.7 * conditional[i] + 0.3 * alone[0] if past else conditional[i]
            x[entry.chunk] = x[entry.chunk] + velocity * entry.dt
    return x


def test_one_pass_sampling_against_a_naive_sampler() -> None:
    config = tiny_config(num_frames=96)
    expected = naive_video(config, tiny_dit(config), tiny_noise(4), TinyCaptions(config))
    actual = run(config, chunks=4)
    for chunk, latents in enumerate(expected):
        assert torch.allclose(actual[chunk][0], latents, atol=2e-4), chunk


def test_three_pass_sampling_against_a_naive_sampler() -> None:
    """Chunk 0 only: later ones see clean keys of two different passes, which the naive sampler does not model."""
    config = tiny_config(
        three_pass=True, num_frames=96, window_size=1, num_steps=4, text_scales=[2.0, 1.5, 1.0, 0.0, 0.0]
    )
    dit, captions = tiny_dit(config), TinyCaptions(config)
    expected = naive_video(config, dit, tiny_noise(4), captions)
    actual = run(config, chunks=4)
    assert torch.allclose(actual[0][0], expected[0], atol=2e-4)


def test_chunks_come_in_order_and_as_soon_as_they_are_clean() -> None:
    config = tiny_config()
    sampler = Sampler(tiny_dit(config), config)
    seen = []
    for chunk in sampler.run(tiny_noise(5), TinyCaptions(config)):
        seen.append((chunk.number, len(sampler.record.steps)))
    assert seen == [(0, 8), (1, 10), (2, 12), (3, 14), (4, 16)]


def test_a_second_video_equals_the_first_of_a_fresh_sampler() -> None:
    config = tiny_config()
    dit, captions = tiny_dit(config), TinyCaptions(config)
    sampler = Sampler(dit, config)
    for _ in sampler.run(tiny_noise(5, seed=9), captions):
        pass
    second = [chunk.latents for chunk in sampler.run(tiny_noise(5), captions)]
    fresh = [chunk.latents for chunk in Sampler(dit, config).run(tiny_noise(5), captions)]
    assert all(torch.equal(a, b) for a, b in zip(second, fresh, strict=True))
    assert len(sampler.record.steps) == 16


@pytest.mark.parametrize(("given", "first_frames", "chunks"), [(0, 6, 4), (1, 6, 5), (8, 4, 6), (12, 6, 6)])
def test_what_comes_out_of_a_prefix(given: int, first_frames: int, chunks: int) -> None:
    """The chunk of an image is returned whole, the given frames of a video are cut off."""
    config = tiny_config(num_frames=96)
    prefix = torch.randn(1, 16, given, 4, 4) if given else None
    out = run(config, prefix, chunks)
    assert sorted(out) == list(range(chunks - given // 6))
    assert out[0].shape == (1, 16, first_frames, 4, 4)
    assert all(latents.shape[2] == 6 for number, latents in out.items() if number)


def test_a_given_video_determines_what_follows() -> None:
    config = tiny_config(num_frames=48)
    prefix = torch.randn(1, 16, 8, 4, 4, generator=torch.Generator().manual_seed(5))
    base = run(config, prefix, 4)
    for frame in (0, 7):
        changed = prefix.clone()
        changed[:, :, frame] += 1
        assert not torch.allclose(run(config, changed, 4)[0], base[0], atol=1e-3)


def test_the_given_image_is_what_the_model_sees() -> None:
    """At every step the first frame of chunk 0 is the image again, whatever the last step made of it."""
    config = tiny_config(num_frames=20)
    prefix = torch.randn(1, 16, 1, 4, 4)
    seen, moves = [], []

    class Watching(NoMemory):
        def observe(self, step: Step, chunk: int, velocity: Tensor) -> None:
            moves.append(velocity * step.of(chunk).dt)

        def select(self, step: Step, features: object) -> tuple[int, ...]:
            seen.append(features()[0])
            return step.chunks

    dit = tiny_dit(config)
    watching = Watching()
    sampler = Sampler(dit, config, reuse=Reuse(watching, watching))
    out = next(sampler.run(tiny_noise(1), TinyCaptions(config), prefix)).latents
    frame_tokens = 4
    expected = dit.embed(torch.cat([prefix, torch.zeros(1, 16, 5, 4, 4)], dim=2))[0, :frame_tokens]
    assert all(torch.allclose(features[:frame_tokens], expected, atol=1e-6) for features in seen)
    # The last step, and only the last, moved it in what comes out, as published.
    assert torch.allclose(out[0, :, 0], prefix[0, :, 0] + moves[-1][:, 0], atol=1e-6)


def test_noise_of_the_wrong_length_is_refused() -> None:
    config = tiny_config()
    with pytest.raises(ValueError, match=r"noise has shape .*30.* is needed for 5 chunks"):
        next(Sampler(tiny_dit(config), config).run(tiny_noise(4), TinyCaptions(config)))


def test_the_record_counts_what_was_done() -> None:
    config = tiny_config()
    sampler = Sampler(tiny_dit(config), config)
    list(sampler.run(tiny_noise(5), TinyCaptions(config)))
    summary = sampler.record.summary()
    assert summary["chunk_forwards_computed"] == 40 and summary["chunk_forwards_reused"] == 0
    assert summary["clean_passes"] == 4
    # Of the window's first chunk: indices 6 and 7 while the window is full, 3/4 and on while it drains.
    assert summary["nearly_clean_copies"] == sum(step.window[0].t > 0.3 for step in make_schedule(config, 0).steps)
    assert sampler.record.reuse_map()[0] == [0, -1, -1, -1, -1]
    first, last = sampler.record.forwards[0], sampler.record.forwards[-1]
    assert first.keys == (24,) and last.keys == (120, 24) and last.caption_tokens == (5, 5)


def test_the_plain_cache_is_reset_to_the_video() -> None:
    config = tiny_config()
    cache = KVCache(kv_geometry(config, torch.device("cpu")))
    sampler = Sampler(tiny_dit(config), config, cache)
    list(sampler.run(tiny_noise(5), TinyCaptions(config)))
    assert cache.bytes == 5 * 24 * cache.geometry.bytes_per_token
    short = tiny_config(num_frames=24)
    list(Sampler(tiny_dit(short), short, cache).run(tiny_noise(1), TinyCaptions(short)))
    assert cache.bytes == 24 * cache.geometry.bytes_per_token


@pytest.mark.parametrize("given", [0, 2])
def test_predictions_end_in_the_chunk_and_change_nothing(given: int) -> None:
    config = tiny_config()
    prefix = tiny_noise(1, seed=3)[:, :, :given] if given else None
    count = make_schedule(config, given).chunk_num
    plain = run(config, prefix, chunks=count)
    sampler, seen = Sampler(tiny_dit(config), config), []
    sampler.begin(tiny_noise(count), TinyCaptions(config), prefix)
    chunks = {}
    while not sampler.done:
        chunk = sampler.stage(on_prediction=lambda *prediction: seen.append(prediction))
        if chunk is not None:
            chunks[chunk.number] = chunk.latents
    assert chunks.keys() == plain.keys() and all(torch.equal(chunks[number], plain[number]) for number in plain)
    assert len(seen) == sampler.schedule.total_steps, "the first chunk of the window, at every step"
    for number, latents in chunks.items():
        levels = [level for chunk, level, _ in seen if chunk == number]
        assert levels == sorted(levels) and (number or levels[0] == 0)
        # At the last step the rest of the way is the step itself.
        expected = next(expected for chunk, level, expected in reversed(seen) if chunk == number)
        torch.testing.assert_close(expected, latents, rtol=1e-5, atol=1e-6)
