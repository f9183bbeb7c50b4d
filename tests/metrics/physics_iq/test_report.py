"""Results for people: scores per category and view, and the table of runs."""

import json

import numpy as np
import pytest

from metrics.physics_iq.official import official_metrics
from metrics.physics_iq.report import details, markdown_table
from metrics.physics_iq.scores import verified_score
from tests.metrics.physics_iq.results import random_results
from tests.metrics.physics_iq.test_official import metrics_of


def test_scores_of_categories_and_views() -> None:
    results = random_results()
    found = details(results)
    every = [result for _, result in results]
    optics = [result for view, result in results if view.category == "Optics"]
    assert set(found) == {"scenario_views", "categories", "views"} and found["scenario_views"] == 9
    assert found["categories"]["Optics"] == {"scenario_views": 6, **official_metrics(optics)}
    assert found["categories"]["Magnetism"]["final_score_view"] == verified_score(every[3:6]).score
    each = [view["score_view"] for view in found["views"].values()]
    assert len(each) == 9 and np.mean(each) == pytest.approx(verified_score(every).score)
    view, result = results[4]
    assert found["views"][view.generated_name]["means"]["mse"] == result.first.mean("mse")
    assert found["views"][view.generated_name]["physical_variance"]["mse"] == result.variance.mean("mse")
    assert json.loads(json.dumps(found)) == found


def test_the_table_of_runs_and_models() -> None:
    runs = {
        f"magi-op-run_{number:02}": {**metrics_of(value), "final_score_origround": 100 * value + 1}
        for number, value in enumerate((0.40, 0.44, 0.46, 0.50), 1)
    }
    runs["magi-bpp-run_01"] = {**metrics_of(0.48), "final_score_origround": 49.0}
    table = markdown_table(runs, models=True).splitlines()
    assert len(table) == 2 + 5 + 2
    assert table[0].startswith("| run | Original | Verified | ")
    assert table[2] == "| magi-op-run_01 | 41.00 | 40.00 | 42.00 | 41.00 | 43.00 | 44.00 |"
    assert "| magi-op, 4 runs | 46.00 ± 4.16 | 45.00 ± 4.16 |" in table[-2] + table[-1]
    assert "| magi-bpp, 1 run | 49.00 | 48.00 |" in table[-2] + table[-1]
    assert len(markdown_table(runs).splitlines()) == 2 + 5
