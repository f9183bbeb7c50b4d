"""Multi-step reuse in whole runs: the neutral pattern bit by bit, and every mode with every guidance and window."""

import pytest
import torch
from torch import Tensor

from flowcache.config import CompressionConfig
from flowcache.kv_cache import CompressedKVCache
from harness.methods import make_reuse
from inference.config import MagiConfig
from inference.record import RunRecord
from inference.sampler import Sampler, kv_geometry
from inference.schedule import time_grid
from multistep.config import MultistepConfig, Solver
from multistep.solver import rule_solver
from tests.tiny import TinyCaptions, tiny_config, tiny_dit, tiny_noise

CHUNKS = 5
PATTERN = {"pattern": (0, 3, 5, 7), "pattern_steps": 8}
TIMES = time_grid(8, "8,16,16")
WHOLE = {"pattern": tuple(range(8)), "pattern_steps": 8}
# The rule's own weights, but the model is asked at other noise levels.
LEVELS = (0.0, *(float(TIMES[step]) + 0.001 for step in (3, 5, 7)))
SOLVED = PATTERN | {"solver": rule_solver((0, 3, 5, 7), TIMES, 0.8, True).model_copy(update={"levels": LEVELS})}


def run(
    config: MagiConfig,
    settings: dict | None,
    prefix: Tensor | None = None,
    budget: int | None = None,
    chunks: int = CHUNKS,
) -> tuple[list[Tensor], RunRecord]:
    reuse = None if settings is None else make_reuse(MultistepConfig(**settings))
    cache = None
    if budget is not None:
        compression = CompressionConfig(compress_kv_cache=True, total_cache_chunk_nums=budget)
        cache = CompressedKVCache(kv_geometry(config, torch.device("cpu")), compression)
    sampler = Sampler(tiny_dit(config), config, cache, reuse)
    out = [chunk.latents for chunk in sampler.run(tiny_noise(chunks), TinyCaptions(config), prefix)]
    return out, sampler.record


def video(**options: object) -> MagiConfig:
    return tiny_config(num_frames=24 * CHUNKS, **options)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [None, rule_solver(WHOLE["pattern"], TIMES, 0.8, True)])
@pytest.mark.parametrize("three_pass", [False, True])
def test_a_pattern_of_all_steps_is_magi(three_pass: bool, solver: Solver | None) -> None:
    config = video(three_pass=three_pass)
    plain, _ = run(config, None)
    cached, record = run(config, WHOLE | {"solver": solver})
    assert record.reused == 0
    assert all(torch.equal(a, b) for a, b in zip(plain, cached, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("window", [[], [5, 4, 3, 2]])
@pytest.mark.parametrize("three_pass", [False, True])
@pytest.mark.parametrize("given", [0, 1, 8])
@pytest.mark.parametrize("settings", [PATTERN, SOLVED], ids=["rule", "solver"])
def test_every_mode(three_pass: bool, window: list[int], given: int, settings: dict) -> None:
    """Half of the steps are left out, latents stay finite and near those of a whole run."""
    config = video(three_pass=three_pass, noise2clean_kvrange=window)
    prefix = tiny_noise(CHUNKS)[:, :, :given] if given else None
    if given:
        config = config.with_overrides(num_frames=24 * CHUNKS - 4 * given)
    whole, _ = run(config, None, prefix)
    cached, record = run(config, settings, prefix)
    assert record.share_reused == 0.5
    for a, b in zip(whole, cached, strict=True):
        assert torch.isfinite(b).all()
        assert (a - b).norm() < 0.6 * a.norm()  # a random model is far from smooth


@pytest.mark.parametrize("settings", [PATTERN, SOLVED], ids=["rule", "solver"])
def test_with_a_compressed_cache(settings: dict) -> None:
    config = tiny_config(num_frames=24 * 8, noise2clean_kvrange=[])
    cached, record = run(config, settings, budget=5, chunks=8)
    assert record.compactions > 0
    assert all(torch.isfinite(chunk).all() for chunk in cached)


@pytest.mark.parametrize("three_pass", [False, True])
def test_the_rule_as_a_solver_makes_the_rules_video(three_pass: bool) -> None:
    config = video(three_pass=three_pass)
    rule, _ = run(config, PATTERN)
    solver = rule_solver((0, 3, 5, 7), TIMES, 0.8, True)
    solved, _ = run(config, PATTERN | {"solver": solver})
    for a, b in zip(rule, solved, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_another_noise_level_makes_another_video() -> None:
    solver = rule_solver((0, 3, 5, 7), TIMES, 0.8, True)
    made = [run(video(), PATTERN | {"solver": one})[0][-1] for one in (solver, SOLVED["solver"])]
    assert (made[0] - made[1]).norm() > 1e-3 * made[0].norm()
