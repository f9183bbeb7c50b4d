"""Results as files: the official table's columns, scores per category, several runs together."""

import ast
import csv
import io
import json

import numpy as np
import pytest

from metrics.physics_iq.report import aggregate, markdown_table, official_table, summarise
from metrics.physics_iq.scores import Comparison, ViewResult, original_score, verified_score
from metrics.physics_iq.table import VIEWS, ScenarioView

FRAMES = 4
# Written down, not derived: one view's columns as the official evaluator names them.
COLUMNS = (
    "v1_mse_{} v2_mse_{} variance_spatial_{} variance_weighted_spatial_{} variance_spatiotemporal_iou_{} "
    "variance_mse_{} spatiotemporal_iou_v1_{} spatiotemporal_iou_v2_{} spatial_iou_v1_{} spatial_iou_v2_{} "
    "weighted_spatial_iou_v1_{} weighted_spatial_iou_v2_{}"
)


def random_comparison(rng: np.random.Generator) -> Comparison:
    def values(scale: float) -> tuple[float, ...]:
        return tuple(float(value) for value in scale * rng.uniform(0.3, 1, FRAMES))

    return Comparison(values(0.1), values(1), float(rng.uniform(0.3, 1)), float(rng.uniform(0.3, 1)))


@pytest.fixture
def results() -> list[tuple[ScenarioView, ViewResult]]:
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


def test_the_table_has_the_official_columns(results: list[tuple[ScenarioView, ViewResult]]) -> None:
    rows = list(csv.DictReader(io.StringIO(official_table(results))))
    expected = {column.format(view) for view in VIEWS for column in COLUMNS.split()} | {"scenario"}
    assert set(rows[0]) == expected and len(expected) == 37
    assert [row["scenario"] for row in rows] == ["trimmed-a", "trimmed-b", "trimmed-c"]
    view, result = results[4]
    row, name = rows[1], view.view
    lists = {
        f"v1_mse_{name}": result.first.mse,
        f"v2_mse_{name}": result.second.mse,
        f"variance_mse_{name}": result.variance.mse,
        f"variance_spatiotemporal_iou_{name}": result.variance.spatiotemporal_iou,
        f"spatiotemporal_iou_v1_{name}": result.first.spatiotemporal_iou,
        f"spatiotemporal_iou_v2_{name}": result.second.spatiotemporal_iou,
    }
    numbers = {
        f"variance_spatial_{name}": result.variance.spatial_iou,
        f"variance_weighted_spatial_{name}": result.variance.weighted_spatial_iou,
        f"spatial_iou_v1_{name}": result.first.spatial_iou,
        f"spatial_iou_v2_{name}": result.second.spatial_iou,
        f"weighted_spatial_iou_v1_{name}": result.first.weighted_spatial_iou,
        f"weighted_spatial_iou_v2_{name}": result.second.weighted_spatial_iou,
    }
    assert {column: ast.literal_eval(row[column]) for column in lists} == {
        column: list(values) for column, values in lists.items()
    }
    assert {column: float(row[column]) for column in numbers} == numbers


def test_a_benchmark_of_one_view(results: list[tuple[ScenarioView, ViewResult]]) -> None:
    rows = list(csv.DictReader(io.StringIO(official_table(results[1::3]))))
    assert len(rows) == 3 and set(rows[0]) == {
        "scenario",
        *(column.format("perspective-center") for column in COLUMNS.split()),
    }


def test_scores_of_all_and_of_categories(results: list[tuple[ScenarioView, ViewResult]]) -> None:
    summary = summarise(results)
    every = [result for _, result in results]
    assert summary["final_score_origround"] == original_score(every).score
    assert summary["final_score_orig"] == original_score(every, rounded=False).score
    assert summary["final_score_view"] == verified_score(every).score
    assert summary["score_mse_view"] == verified_score(every).components["mse"]
    optics = [result for view, result in results if view.category == "Optics"]
    assert summary["categories"]["Optics"]["scenario_views"] == len(optics) == 6
    assert summary["categories"]["Optics"]["final_score_view"] == verified_score(optics).score
    assert summary["categories"]["Magnetism"]["final_score_orig"] == original_score(every[3:6], rounded=False).score
    each = [view["score_view"] for view in summary["views"].values()]
    assert len(each) == 9 and np.mean(each) == pytest.approx(summary["final_score_view"])
    assert json.loads(json.dumps(summary)) == summary


def scored(value: float) -> dict[str, float]:
    components = ("spatiotemporal_iou", "spatial_iou", "weighted_spatial_iou", "mse")
    return {
        "final_score_origround": value + 1,
        "final_score_view": value,
        **{f"score_{component}_view": value + number for number, component in enumerate(components)},
    }


def test_runs_of_a_model_together() -> None:
    runs = {f"magi-op-run_{number:02}": scored(value) for number, value in enumerate((40.0, 44.0, 46.0, 50.0), 1)}
    runs["magi-bpp-run_01"] = scored(48.0)
    models = aggregate(runs)
    assert models["magi-op"]["runs"] == [f"magi-op-run_0{number}" for number in range(1, 5)]
    # Squared deviations 25, 1, 1, 25; divided by n - 1 = 3.
    assert models["magi-op"]["final_score_view"] == {"mean": 45, "std": pytest.approx((52 / 3) ** 0.5)}
    assert models["magi-op"]["final_score_origround"]["mean"] == 46
    assert models["magi-op"]["score_mse_view"]["mean"] == 48
    assert models["magi-bpp"]["final_score_view"] == {"mean": 48, "std": None}
    table = markdown_table(runs, models).splitlines()
    assert len(table) == 2 + 5 + 2
    assert table[2] == "| magi-op-run_01 | 41.00 | 40.00 | 40.00 | 41.00 | 42.00 | 43.00 |"
    assert "| magi-op, 4 runs | 46.00 ± 4.16 | 45.00 ± 4.16 |" in table[-2] + table[-1]
    assert "| magi-bpp, 1 run | 49.00 | 48.00 |" in table[-2] + table[-1]


def test_runs_need_names_that_can_be_grouped() -> None:
    with pytest.raises(ValueError, match="'magi-run_01' is not named"):
        aggregate({"magi-run_01": scored(1.0)})
