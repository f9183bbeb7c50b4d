"""Physics-IQ results for people: the scores of categories and views, and a table of runs (docs/scores.md, "Files")."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from metrics.physics_iq.official import PARTS, Results, aggregate, group_runs, official_metrics
from metrics.physics_iq.scores import METRICS, ViewResult, verified_components

COLUMNS = {"final_score_view": "Verified", **{f"score_{name}_view": f"{name} (Verified)" for name in PARTS}}


def details(results: Results) -> dict[str, Any]:
    """What the official files do not have: the metrics of every category, and each view's means and Verified score."""
    categories = dict.fromkeys(view.category for view, _ in results)
    return {
        "scenario_views": len(results),
        "categories": {
            category: _category([result for view, result in results if view.category == category])
            for category in categories
        },
        "views": {view.generated_name: _view(result) for view, result in results},
    }


def _category(results: list[ViewResult]) -> dict[str, Any]:
    return {"scenario_views": len(results), **official_metrics(results)}


def _view(result: ViewResult) -> dict[str, Any]:
    components = verified_components(result)
    return {
        "score_view": float(np.mean(list(components.values()))),
        "means": {metric: result.first.mean(metric) for metric in METRICS},
        "physical_variance": {metric: result.variance.mean(metric) for metric in METRICS},
    }


def markdown_table(runs: Mapping[str, Mapping[str, float]], models: bool = False) -> str:
    """A row per run from its official metrics, and where ``models`` a row per model over its runs; all in percent."""
    titles = ["run", "Original", *COLUMNS.values()]
    rows = [
        [name, f"{run['final_score_origround']:.2f}", *(f"{100 * run[column]:.2f}" for column in COLUMNS)]
        for name, run in runs.items()
    ]
    for model, names in group_runs(list(runs)).items() if models else ():
        of_model = [runs[name] for name in names]
        original, verified = aggregate(of_model, "original"), aggregate(of_model, "verified")
        spreads = [original["final_score_orig"], *(verified[column] for column in COLUMNS)]
        count = f"{len(names)} run{'s' if len(names) > 1 else ''}"
        rows.append([f"{model}, {count}", *map(_plus_minus, spreads)])
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _plus_minus(spread: Mapping[str, float | None]) -> str:
    return f"{spread['mean']:.2f}" + ("" if spread["std"] is None else f" ± {spread['std']:.2f}")
