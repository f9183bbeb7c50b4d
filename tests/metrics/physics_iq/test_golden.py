"""The official code's own numbers: its table of small clips, the scores it finds in tables, runs taken together."""

import csv
import io
import json
from pathlib import Path

import pytest

from metrics.physics_iq.files import Benchmark, check_generated, score_view
from metrics.physics_iq.official import SCORE_TYPES, aggregate_table, official_metrics, official_table
from metrics.physics_iq.scores import ViewResult
from metrics.physics_iq.table import ScenarioView, find_descriptions, read_descriptions
from tests.metrics.physics_iq.golden_clips import build
from tests.metrics.physics_iq.results import random_results

GOLDEN = Path(__file__).parent / "golden"
METRICS = json.loads((GOLDEN / "metrics.json").read_text())


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[ScenarioView, ViewResult]]:
    root = tmp_path_factory.mktemp("golden")
    generated = build(root)
    views = read_descriptions(find_descriptions(root))
    benchmark = Benchmark(root, check_generated(generated, views))
    return [(view, score_view(benchmark, view, generated / view.generated_name)) for view in views]


def rows_of(text: str) -> dict[str, dict[str, str]]:
    return {row["scenario"]: row for row in csv.DictReader(io.StringIO(text))}


def test_every_cell_of_the_table(results: list[tuple[ScenarioView, ViewResult]]) -> None:
    found, official = rows_of(official_table(results)), rows_of((GOLDEN / "table.csv").read_text())
    assert list(found) == sorted(official, key=list(found).index) and found.keys() == official.keys()
    for scenario, row in official.items():
        assert list(found[scenario]) == list(row)
        for column, cell in row.items():
            if column == "scenario":
                continue
            here, there = json.loads(found[scenario][column]), json.loads(cell)
            # Quotients of counts are the same numbers; sums of fractions depend on their order, in float32 for squares.
            order = 1e-6 if "mse" in column else 1e-14 if "weighted" in column else 0
            assert here == pytest.approx(there, rel=order, abs=0), column


def test_scores_of_the_clips(results: list[tuple[ScenarioView, ViewResult]]) -> None:
    assert official_metrics([result for _, result in results]) == pytest.approx(METRICS["clips"], rel=1e-12)


def test_scores_of_a_table() -> None:
    found = official_metrics([result for _, result in random_results()])
    assert found == pytest.approx(METRICS["random"], rel=1e-12)


@pytest.mark.parametrize("score_type", SCORE_TYPES)
def test_two_runs_taken_together(score_type: str) -> None:
    runs = [METRICS["clips"], METRICS["random"]]
    assert aggregate_table("made-up-op", runs, score_type) == METRICS["runs"][score_type]
