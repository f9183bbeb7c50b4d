"""Coefficients fitted through whole sampling runs, on a tiny random model: gradients, training, going on."""

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.calibration.differentiable import Coefficients, DifferentiableRun, Start
from harness.calibration.fitting import SolverFit, Target
from harness.calibration.making import gains
from harness.methods import make_reuse
from inference.config import MagiConfig
from inference.kv_cache import KVCache
from inference.sampler import Sampler, kv_geometry
from multistep.config import MultistepConfig
from multistep.solver import rule_solver
from tests.tiny import TinyCaptions, tiny_config, tiny_dit, tiny_noise

CPU = torch.device("cpu")
PATTERN = (0, 3, 5, 7)


def tiny_run(chunks: int = 3, **options: object) -> tuple[DifferentiableRun, Start, MagiConfig]:
    config = tiny_config(num_frames=24 * 5, noise2clean_kvrange=[5, 4, 3, 2], **options)
    noise = torch.stack(tiny_noise(5)[0].split(6, dim=1))[:chunks]
    return DifferentiableRun(tiny_dit(config), config, chunks, CPU), Start(noise, TinyCaptions(config)), config


def rule(run: DifferentiableRun) -> Coefficients:
    return fit_of(run).coefficients()


def fit_of(run: DifferentiableRun, **options: float) -> SolverFit:
    grams = np.stack([np.eye(8) + 1.0] * 2)
    return SolverFit(run, PATTERN, grams, 0.8, True, True, **options)


@pytest.mark.parametrize(("three_pass", "copies"), [(False, True), (False, False), (True, True)])
def test_it_is_the_samplers_video(three_pass: bool, copies: bool) -> None:
    run, start, config = tiny_run(three_pass=three_pass)
    solver = rule_solver(PATTERN, run.schedule.times, 0.8, True)
    settings = MultistepConfig(pattern=PATTERN, pattern_steps=8, solver=solver, discard_nearly_clean_chunk=not copies)
    sampler = Sampler(run.dit, config, KVCache(kv_geometry(config, CPU)), make_reuse(settings))
    made = [chunk.latents[0] for chunk in sampler.run(tiny_noise(5), start.captions)]
    with torch.no_grad():
        found = run.clean(start, PATTERN, rule(run), copies)
    for chunk in range(3):  # of five: the later ones change nothing about them
        torch.testing.assert_close(found[chunk], made[chunk], rtol=1e-3, atol=1e-4)


def test_gradients_are_those_of_finite_differences() -> None:
    run, start, _ = tiny_run(chunks=2)
    plain = rule(run)
    aim = torch.randn(2, 16, 6, 4, 4, generator=torch.Generator().manual_seed(0))

    def value(levels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return (run.clean(start, PATTERN, Coefficients(levels, weights), True) * aim).double().mean()

    levels, weights = (part.detach().clone().requires_grad_() for part in (plain.levels, plain.weights))
    value(levels, weights).backward()
    size = 1e-3
    for part, place in ((levels, (2,)), (weights, (0, 1, 0)), (weights, (1, 2, 1)), (weights, (1, 3, 3))):
        ends = []
        for sign in (1, -1):
            moved = [one.detach().clone() for one in (levels, weights)]
            moved[0 if part is levels else 1][place] += sign * size
            ends.append(value(*moved).item())
        assert part.grad[place].item() == pytest.approx((ends[0] - ends[1]) / (2 * size), rel=0.05, abs=2e-4)


def targets(run: DifferentiableRun, start: Start) -> list[Target]:
    """What a denser pattern makes: something that coefficients can come nearer to."""
    whole = tuple(range(8))
    fit = SolverFit(run, whole, np.stack([np.eye(8)] * 2), 0.8, True, True)
    with torch.no_grad():
        return [Target(start, run.clean(start, whole, fit.coefficients(), True))]


def test_training_comes_nearer_and_gives_a_solver() -> None:
    run, start, _ = tiny_run(chunks=2)
    losses: list[float] = []
    fit = fit_of(run, level_rate=0.0)  # random weights make chaos of other noise levels
    fit.train(targets(run, start), 12, losses.append)
    assert losses[-1] < losses[0] - 1  # dB
    solver = fit.solver()
    first = rule_solver(PATTERN, run.schedule.times, 0.8, True)
    assert solver.levels == pytest.approx(first.levels, rel=1e-5)
    assert solver.first != first.first and solver.later != solver.first
    assert [len(row) for row in solver.later] == [1, 2, 3, 4]


def test_a_training_that_was_stopped_goes_on(tmp_path: Path) -> None:
    run, start, _ = tiny_run(chunks=2)
    aims = targets(run, start)
    whole = fit_of(run)
    whole.train(aims, 4, lambda loss: None)

    class Stopped(Exception):
        pass

    def stop(_: float) -> None:
        stopped.save(tmp_path / "fit.pt")
        if stopped.iteration == 3:
            raise Stopped

    stopped = fit_of(run)
    with pytest.raises(Stopped):
        stopped.train(aims, 4, stop)
    going_on = fit_of(run)
    going_on.load(tmp_path / "fit.pt")
    assert going_on.iteration == 3
    going_on.train(aims, 4, lambda loss: None)
    assert going_on.solver() == whole.solver()
    levels = rule_solver(PATTERN, run.schedule.times, 0.8, True).levels
    moved = [abs(a - b) > 1e-4 for a, b in zip(whole.solver().levels, levels, strict=True)]
    assert moved == [False, True, True, True]  # noise is noise


def test_a_solver_is_kept_where_held_out_videos_gain_beyond_doubt() -> None:
    rule_psnr = [30.0, 35.0, 40.0, 45.0]
    assert gains([32.0, 37.5, 42.0, 47.0], rule_psnr)
    assert not gains([30.0, 36.0, 39.5, 45.0], rule_psnr)  # undecided
    assert not gains([28.0, 33.0, 38.0, 43.0], rule_psnr)
    assert not gains([40.0], [30.0])  # one video decides nothing
