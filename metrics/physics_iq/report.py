"""Physics-IQ results as files: the official table (CSV), the scores of a run (JSON), several runs together
(docs/scores.md, "Physics-IQ").
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metrics.physics_iq.scores import METRICS, ViewResult, original_score, verified_components, verified_score
from metrics.physics_iq.table import ScenarioView

Results = Sequence[tuple[ScenarioView, ViewResult]]

# Names of Verified's run folders.
RUN_NAME = re.compile(r"(?P<model>.+-(?:op|bpp))-run_(?P<number>\d+)")
SCORES = ("final_score_origround", "final_score_view")


def official_table(results: Results) -> str:
    """The results as the official evaluator's CSV: a row per scenario, columns per view; lists as ``[0.1, 0.2]``."""
    by_scenario: dict[str, dict[str, Any]] = {}
    views = list(dict.fromkeys(view.view for view, _ in results))
    for view, result in results:
        row = by_scenario.setdefault(view.scenario, {"scenario": view.scenario})
        row.update({f"{name}_{view.view}": value for name, value in _columns(result).items()})
    columns = ["scenario", *(f"{name}_{view}" for view in views for name in _columns(results[0][1]))]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(by_scenario.values())
    return text.getvalue()


def _columns(result: ViewResult) -> dict[str, float | list[float]]:
    """The cells of one view by the first part of their column's name."""
    first, second, variance = result.first, result.second, result.variance
    return {
        "v1_mse": list(first.mse),
        "v2_mse": list(second.mse),
        "variance_spatial": variance.spatial_iou,
        "variance_weighted_spatial": variance.weighted_spatial_iou,
        "variance_spatiotemporal_iou": list(variance.spatiotemporal_iou),
        "variance_mse": list(variance.mse),
        "spatiotemporal_iou_v1": list(first.spatiotemporal_iou),
        "spatiotemporal_iou_v2": list(second.spatiotemporal_iou),
        "spatial_iou_v1": first.spatial_iou,
        "spatial_iou_v2": second.spatial_iou,
        "weighted_spatial_iou_v1": first.weighted_spatial_iou,
        "weighted_spatial_iou_v2": second.weighted_spatial_iou,
    }


def summarise(results: Results) -> dict[str, Any]:
    """Scores and their components: of all views, of every category, and of each view."""
    categories = dict.fromkeys(view.category for view, _ in results)
    return {
        **_scores([result for _, result in results]),
        "categories": {
            category: _scores([result for view, result in results if view.category == category])
            for category in categories
        },
        "views": {view.generated_name: _view_scores(result) for view, result in results},
    }


def _scores(results: Sequence[ViewResult]) -> dict[str, Any]:
    """``final_score_*`` as the official tools name them, in percent."""
    original, verified = original_score(results), verified_score(results)
    exact = original_score(results, rounded=False)
    return {
        "scenario_views": len(results),
        "final_score_orig": exact.score,
        "final_score_origround": original.score,
        "final_score_view": verified.score,
        **{f"score_{metric}_view": value for metric, value in verified.components.items()},
        "means": exact.means,
        "physical_variance": exact.variances,
    }


def _view_scores(result: ViewResult) -> dict[str, Any]:
    components = verified_components(result)
    return {
        "score_view": 100 * float(np.mean(list(components.values()))),
        "means": {metric: result.first.mean(metric) for metric in METRICS},
        "physical_variance": {metric: result.variance.mean(metric) for metric in METRICS},
    }


def aggregate(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation (n - 1) of the scores over the runs of each model, by the model's name.

    ``runs`` maps names ``MODEL-op-run_01`` to what :func:`summarise` gave; ValueError for names of another form. The
    deviation of a single run is None.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(runs):
        match = RUN_NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"run {name!r} is not named MODEL-op-run_NN or MODEL-bpp-run_NN")
        groups.setdefault(match.group("model"), []).append(name)
    scores = (*SCORES, *(f"score_{metric}_view" for metric in METRICS))
    return {
        model: {"runs": names, **{score: _spread([runs[name][score] for name in names]) for score in scores}}
        for model, names in groups.items()
    }


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": deviation}


def markdown_table(runs: Mapping[str, Mapping[str, Any]], models: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows for runs, then for models over their runs (:func:`aggregate`); all in percent."""
    titles = ["run", "Original", "Verified", *(f"{metric.replace('_', ' ')} (Verified)" for metric in METRICS)]
    columns = (*SCORES, *(f"score_{metric}_view" for metric in METRICS))
    rows = [[name, *(f"{run[column]:.2f}" for column in columns)] for name, run in runs.items()]
    for model, over in models.items():
        cells = [
            f"{over[column]['mean']:.2f}" + ("" if over[column]["std"] is None else f" ± {over[column]['std']:.2f}")
            for column in columns
        ]
        count = len(over["runs"])
        rows.append([f"{model}, {count} run{'s' if count > 1 else ''}", *cells])
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
