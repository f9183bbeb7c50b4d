"""The official files: a table that their readers take for what it is, their names and scales, runs taken together."""

import csv
import io
import json

import numpy as np
import pytest

from metrics.physics_iq.official import aggregate_table, group_runs, official_metrics, official_table
from metrics.physics_iq.scores import Comparison, Take, ViewResult, compare_view, original_score
from metrics.physics_iq.table import ScenarioView
from tests.metrics.physics_iq.results import random_results
from tests.metrics.physics_iq.strict_reader import VIEWS, read_table, scores_of

# Written down, not derived: one view's columns as the official evaluator names and orders them.
COLUMNS = (
    "v1_mse_{} v2_mse_{} variance_spatial_{} variance_weighted_spatial_{} variance_spatiotemporal_iou_{} "
    "variance_mse_{} spatiotemporal_iou_v1_{} spatiotemporal_iou_v2_{} spatial_iou_v1_{} spatial_iou_v2_{} "
    "weighted_spatial_iou_v1_{} weighted_spatial_iou_v2_{}"
)


def measured_results() -> list[tuple[ScenarioView, ViewResult]]:
    """Two scenarios from three sides, compared by the program from small pictures and masks."""
    rng = np.random.default_rng(5)

    def take() -> Take:
        return Take(rng.integers(0, 256, (4, 6, 8, 3), dtype=np.uint8), rng.uniform(size=(4, 6, 8)) < 0.6)

    pairs = [(scenario, view) for scenario in ("trimmed-a", "trimmed-b") for view in VIEWS]
    return [
        (ScenarioView(f"{number:04}", view, scenario, "Optics", "A thing."), compare_view(take(), take(), take()))
        for number, (scenario, view) in enumerate(pairs, 1)
    ]


def test_the_table_holds_numbers_only() -> None:
    results = measured_results()
    rows = read_table(official_table(results))
    assert [row["scenario"] for row in rows] == ["trimmed-a.mp4", "trimmed-b.mp4"]
    view, result = results[4]
    assert rows[1][f"spatial_iou_v1_{view.view}"] == result.first.spatial_iou
    assert rows[1][f"v2_mse_{view.view}"] == [round(value, 4) for value in result.second.mse]
    lists = "spatiotemporal_iou_v1", "variance_spatiotemporal_iou"
    found = [rows[1][f"{name}_{view.view}"] for name in lists]
    assert found == [[round(value, 4) for value in each.spatiotemporal_iou] for each in (result.first, result.variance)]


def test_columns_are_named_and_ordered_as_the_official_ones() -> None:
    results = random_results()
    (header, *_) = csv.reader(io.StringIO(official_table(results)))
    assert header == ["scenario", *(column.format(view) for view in VIEWS for column in COLUMNS.split())]
    rows = read_table(official_table(results[1::3]), ("perspective-center",))
    assert len(rows) == 3 and len(rows[0]) == 1 + 12


@pytest.mark.parametrize("results", [measured_results(), random_results()], ids=["measured", "random"])
def test_the_metrics_are_those_of_the_table_that_was_written(results: list[tuple[ScenarioView, ViewResult]]) -> None:
    metrics = official_metrics([result for _, result in results])
    expected = scores_of(read_table(official_table(results)))
    assert set(metrics) == {*expected, "final_score_origround"}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert metrics["final_score_origround"] == original_score([result for _, result in results])
    assert json.loads(json.dumps(metrics)) == metrics


def test_scales_and_the_stable_score() -> None:
    # ST 0.6 / 0.5 counts as 1 in the stable score; S 0.3 / 0.6; WS 0.2 / 0.5; an MSE below its variance counts as 0.
    first = Comparison((0.01, 0.03), (0.5, 0.7), 0.3, 0.2)
    variance = Comparison((0.03, 0.03), (0.4, 0.6), 0.6, 0.5)
    metrics = official_metrics([ViewResult(first, first, variance)])
    assert metrics["final_score_raw"] == pytest.approx((1.2 + 0.5 + 0.4) / 3 + 0.01, abs=1e-12)
    assert metrics["final_score_orig"] == metrics["final_score_raw"]
    assert metrics["final_score_origround"] == 71.0  # in percent, alone among them
    assert metrics["final_score_stable"] == pytest.approx((1 + 0.5 + 0.4) / 3, abs=1e-12)
    assert metrics["score_spatiotemporal"] == pytest.approx(1.2) and metrics["score_mse"] == pytest.approx(-0.01)
    assert metrics["score_spatiotemporal_view"] == 1 and metrics["score_mse_view"] == 1
    assert metrics["final_score_view"] == pytest.approx((1 + 0.5 + 0.4 + 1) / 4, rel=1e-6)
    worse = Comparison((0.05, 0.07), (0.5, 0.7), 0.3, 0.2)
    stable = official_metrics([ViewResult(worse, first, variance)])["final_score_stable"]
    assert stable == pytest.approx((1 + 0.5 + 0.4) / 3 - 0.03, abs=1e-12)


def test_runs_of_a_model_by_their_names() -> None:
    names = ["magi-op-run_02", "magi-bpp-run_01", "magi-op-run_01"]
    assert group_runs(names) == {
        "magi-op": ["magi-op-run_01", "magi-op-run_02"],
        "magi-bpp": ["magi-bpp-run_01"],
    }
    with pytest.raises(ValueError, match="'magi-run_01' is not named MODEL-op-run_NN"):
        group_runs(["magi-run_01"])


def metrics_of(value: float) -> dict[str, float]:
    names = ("spatial", "spatiotemporal", "weighted_spatial", "mse")
    return {
        "final_score_orig": value + 0.01,
        "final_score_view": value,
        **{f"score_{name}": value + number / 50 for number, name in enumerate(names, 1)},
        **{f"score_{name}_view": value + number / 100 for number, name in enumerate(names, 1)},
    }


def test_four_runs_in_the_official_form() -> None:
    runs = [metrics_of(value) for value in (0.40, 0.44, 0.46, 0.50)]
    # Squared deviations 25, 1, 1, 25; divided by n - 1 = 3: the deviation is 4.1633.
    assert aggregate_table("magi-op", runs, "verified") == (
        "Model,Phys-IQ verified mean,Phys-IQ verified std,SP verified mean,SP verified std,ST verified mean,"
        "ST verified std,WS verified mean,WS verified std,MSE verified mean,MSE verified std\n"
        "magi-op,45.0,4.16,46.0,4.16,47.0,4.16,48.0,4.16,49.0,4.16\n"
    )
    assert aggregate_table("magi-op", runs[:1], "original") == (
        "Model,Phys-IQ orig. mean,Phys-IQ orig. std,SP orig. mean,SP orig. std,ST orig. mean,"
        "ST orig. std,WS orig. mean,WS orig. std,MSE orig. mean,MSE orig. std\n"
        "magi-op,41.0,,42.0,,44.0,,46.0,,48.0,\n"
    )
