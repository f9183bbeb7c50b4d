"""Comparisons that no video was needed for."""

import numpy as np

from metrics.physics_iq.scores import Comparison, ViewResult
from metrics.physics_iq.table import VIEWS, ScenarioView

FRAMES = 4


def random_comparison(rng: np.random.Generator) -> Comparison:
    def values(scale: float) -> tuple[float, ...]:
        return tuple(float(value) for value in scale * rng.uniform(0.3, 1, FRAMES))

    return Comparison(values(0.1), values(1), float(rng.uniform(0.3, 1)), float(rng.uniform(0.3, 1)))


def random_results() -> list[tuple[ScenarioView, ViewResult]]:
    """Three scenarios, two of them of one category, from three sides."""
    rng = np.random.default_rng(0)
    scenarios = {"trimmed-a": "Optics", "trimmed-b": "Magnetism", "trimmed-c": "Optics"}
    pairs = [(scenario, view) for scenario in scenarios for view in VIEWS]
    return [
        (
            ScenarioView(f"{number:04}", view, scenario, scenarios[scenario], "A thing."),
            ViewResult(random_comparison(rng), random_comparison(rng), random_comparison(rng)),
        )
        for number, (scenario, view) in enumerate(pairs, 1)
    ]
