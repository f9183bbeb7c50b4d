"""TeaCache in whole runs: against a naive version of the rule, and neutral settings bit by bit."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from flowcache.kv_cache import CompressedKVCache
from harness.methods import TeaCacheSettings, make_reuse
from inference.config import MagiConfig
from inference.record import RunRecord
from inference.reuse import Features, Reuse
from inference.sampler import Sampler, kv_geometry, make_schedule
from inference.schedule import Schedule, Step
from tests.tiny import TinyCaptions, tiny_config, tiny_dit, tiny_noise

CHUNKS = 7
# Prefix latents: 0 text, 1 image, 9 video (a chunk and a half).
MODES = {"t2v": 0, "i2v": 1, "v2v": 9}
REUSING = {"rel_l1_thresh": 0.4, "warmup_steps": 2}


@dataclass
class Recorded:
    features: list[Mapping[int, Tensor]] = field(default_factory=list)
    velocities: dict[tuple[int, int], Tensor] = field(default_factory=dict)


class Recorder:
    """TeaCache's decider and advancer, which keep what they are shown."""

    def __init__(self, config: TeaCacheSettings) -> None:
        self.inner = make_reuse(config)
        self.recorded = Recorded()

    def reuse(self) -> Reuse:
        return replace(self.inner, decider=self, advancer=self)

    def reset(self, schedule: Schedule) -> None:
        self.inner.reset(schedule)
        self.recorded = Recorded()

    def select(self, step: Step, features: Features) -> tuple[int, ...]:
        self.recorded.features.append({chunk: values.clone() for chunk, values in features().items()})
        return self.inner.decider.select(step, features)

    def observe(self, step: Step, chunk: int, velocity: Tensor) -> Tensor | None:
        self.recorded.velocities[step.number, chunk] = velocity.clone()
        return self.inner.advancer.observe(step, chunk, velocity)

    def advance(self, step: Step, chunk: int) -> Tensor:
        return self.inner.advancer.advance(step, chunk)


def settings(**values: object) -> TeaCacheSettings:
    return TeaCacheSettings(**{**REUSING, **values})


def video(mode: str = "t2v", **options: object) -> tuple[MagiConfig, Tensor | None]:
    """A configuration whose video has ``CHUNKS`` chunks, and the prefix (1, 16, P, 4, 4) of the mode."""
    given = MODES[mode]
    config = tiny_config(num_frames=(CHUNKS * 6 - given) // 6 * 24, **options)
    generator = torch.Generator().manual_seed(3)
    return config, torch.randn(1, 16, given, 4, 4, generator=generator) if given else None


def run(
    config: MagiConfig, prefix: Tensor | None, reuse: Reuse, cache: CompressedKVCache | None = None
) -> tuple[list[Tensor], RunRecord]:
    chunks = make_schedule(config, 0 if prefix is None else prefix.shape[2]).chunk_num
    sampler = Sampler(tiny_dit(config), config, cache, reuse)
    out = [chunk.latents for chunk in sampler.run(tiny_noise(chunks), TinyCaptions(config), prefix)]
    return out, sampler.record


def naive_decisions(schedule: Schedule, shown: list[Mapping[int, Tensor]], config: TeaCacheSettings) -> list[list[int]]:
    """The rule from its description: the chunks computed at every step."""
    decisions, accumulated = [], 0.0
    for number, now in enumerate(shown):
        before = shown[number - 1] if number else {}
        both = [chunk for chunk in sorted(now) if chunk in before]
        if not both or number == len(shown) - 1 or number < config.warmup_steps:
            accumulated = 0.0
            decisions.append(sorted(now))
            continue
        a = np.concatenate([now[chunk].numpy().astype(np.float64).ravel() for chunk in both])
        b = np.concatenate([before[chunk].numpy().astype(np.float64).ravel() for chunk in both])
        change = np.abs(a - b).sum() / a.size / (np.abs(b).sum() / b.size + 1e-8)
        accumulated += change if config.coefficients is None else np.polyval(config.coefficients, change)
        if accumulated >= config.rel_l1_thresh:
            accumulated = 0.0
            decisions.append(sorted(now))
            continue
        sps = schedule.num_steps // schedule.window_size
        finishing = [c for c in both if number + 1 == (c - schedule.offset) * sps + schedule.num_steps]
        entered = [chunk for chunk in now if chunk not in before]
        decisions.append(sorted(entered + (finishing if config.protect_last_step else [])))
    return decisions


def naive_latents(
    schedule: Schedule, decisions: list[list[int]], recorded: Recorded, prefix: Tensor | None, form: str
) -> dict[int, Tensor]:
    """Every chunk's latents after its last step, moved step by step in float64."""
    times = schedule.times.astype(np.float64)
    sps = schedule.num_steps // schedule.window_size
    x = {chunk: part[0].double() for chunk, part in enumerate(tiny_noise(schedule.chunk_num).split(6, dim=2))}
    known: dict[int, list[tuple[Tensor, float, float]]] = {chunk: [] for chunk in x}
    for number, shown in enumerate(recorded.features):
        for chunk in shown:
            index = number - (chunk - schedule.offset) * sps
            t, dt = times[index], times[index + 1] - times[index]
            if prefix is not None:
                part = prefix[0, :, chunk * 6 : chunk * 6 + 6].double()
                x[chunk][:, : part.shape[1]] = part
            if chunk in decisions[number]:
                velocity = recorded.velocities[number, chunk].double()
                known[chunk].append((velocity, t, dt))
            elif form == "linear" and len(known[chunk]) > 1:
                (older, t0, _), (newer, t1, _) = known[chunk][-2:]
                velocity = (older * (t1 - t) + newer * (t - t0)) / (t1 - t0)
            else:
                velocity = known[chunk][-1][0]
                dt = known[chunk][-1][2] if form == "gain" else dt
            x[chunk] = x[chunk] + velocity * dt
    return x


# three_pass, mode, key window, reuse form, last step protected, coefficients
CASES = [
    (False, "t2v", [], "linear", True, None),
    (False, "i2v", [5, 4, 3, 2], "gain", False, None),
    (False, "v2v", [5, 4, 3, 2], "velocity", False, (2.0, 0.5, 0.01)),
    (True, "t2v", [5, 4, 3, 2], "velocity", True, (1.5, 0.0)),
    (True, "i2v", [], "linear", False, None),
    (True, "v2v", [], "gain", True, None),
]


@pytest.mark.parametrize(("three_pass", "mode", "window", "form", "protect", "coefficients"), CASES)
def test_a_run_follows_the_naive_rule(
    three_pass: bool, mode: str, window: list[int], form: str, protect: bool, coefficients: tuple[float, ...] | None
) -> None:
    config, prefix = video(mode, three_pass=three_pass, noise2clean_kvrange=window)
    schedule = make_schedule(config, MODES[mode])
    chosen = settings(reuse_form=form, protect_last_step=protect, coefficients=coefficients)
    recorder = Recorder(chosen)
    out, record = run(config, prefix, recorder.reuse())

    decisions = naive_decisions(schedule, recorder.recorded.features, chosen)
    assert [list(step.computed) for step in record.steps] == decisions
    kinds = {(bool(step.computed), bool(step.reused)) for step in record.steps}
    assert kinds == {(True, False), (False, True), (True, True)}  # all, none, and some computed: each occurs

    expected = naive_latents(schedule, decisions, recorder.recorded, prefix, form)
    assert len(out) == schedule.chunk_num - schedule.offset
    for number, latents in enumerate(out):
        wanted = expected[number + schedule.offset][None]
        torch.testing.assert_close(latents.double(), wanted[:, :, -latents.shape[2] :], rtol=0, atol=2e-5)


@pytest.mark.parametrize("three_pass", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_threshold_zero_is_magi(three_pass: bool, mode: str) -> None:
    config, prefix = video(mode, three_pass=three_pass, noise2clean_kvrange=[5, 4, 3, 2])
    plain, _ = run(config, prefix, Reuse())
    neutral, record = run(config, prefix, make_reuse(settings(rel_l1_thresh=0.0, coefficients=(-1.0, -1.0))))
    assert record.reused == 0
    assert all(torch.equal(a, b) for a, b in zip(plain, neutral, strict=True))
    reused, record = run(config, prefix, make_reuse(settings()))
    assert record.reused > 0 and not torch.equal(plain[-1], reused[-1])


def test_the_extra_passes_are_made_or_left_out() -> None:
    config, _ = video()
    _, kept = run(config, None, make_reuse(settings(protect_last_step=False)))
    seen = set()
    for step, entry in zip(make_schedule(config, 0).steps, kept.steps, strict=True):
        first = step.window[0]
        computed = first.chunk in entry.computed
        assert entry.nearly_clean == (first.chunk if first.t > 0.3 and computed else None)
        seen.add((first.t > 0.3, computed, bool(entry.computed)))
    # Late and computed, late and reused beside one that is computed, late and all reused: each occurs.
    assert seen >= {(True, True, True), (True, False, True), (True, False, False)}
    assert kept.summary()["clean_passes"] == CHUNKS - 1
    _, without = run(config, None, make_reuse(settings(discard_nearly_clean_chunk=True, clean_pass=False)))
    assert without.summary()["nearly_clean_copies"] == without.summary()["clean_passes"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_it_works_with_the_compressed_cache(mode: str) -> None:
    config, prefix = video(mode)
    results = {}
    for budget in (5, 99):
        chosen = settings(compress_kv_cache=True, total_cache_chunk_nums=budget)
        cache = CompressedKVCache(kv_geometry(config, torch.device("cpu")), chosen)
        results[budget], record = run(config, prefix, make_reuse(chosen), cache)
        assert record.reused > 0 and (record.compactions > 0) == (budget == 5)
    plain, _ = run(config, prefix, make_reuse(settings()))
    assert all(torch.equal(a, b) for a, b in zip(plain, results[99], strict=True))
    assert torch.isfinite(results[5][-1]).all() and not torch.equal(plain[-1], results[5][-1])


def test_a_second_video_equals_a_fresh_one() -> None:
    config, prefix = video("v2v")
    used = make_reuse(settings())
    run(video()[0], None, used)
    second, _ = run(config, prefix, used)
    fresh, _ = run(config, prefix, make_reuse(settings()))
    assert all(torch.equal(a, b) for a, b in zip(second, fresh, strict=True))
