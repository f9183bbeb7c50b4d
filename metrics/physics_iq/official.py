"""The files of the official Physics-IQ tools, to the name and the scale (docs/scores.md, "Files").

A table that this module writes can be given to the official scripts, which then find their own scores in it.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from metrics.physics_iq.scores import ViewResult, original_score, set_score, verified_score
from metrics.physics_iq.table import ScenarioView

Results = Sequence[tuple[ScenarioView, ViewResult]]
ScoreType = Literal["original", "verified"]

SCORE_TYPES: tuple[ScoreType, ...] = ("verified", "original")
# Names of Verified's run folders.
RUN_NAME = re.compile(r"(?P<model>.+-(?:op|bpp))-run_(?P<number>\d+)")
# The official names of the four parts of a score, and what we call them.
PARTS = {
    "spatiotemporal": "spatiotemporal_iou",
    "spatial": "spatial_iou",
    "weighted_spatial": "weighted_spatial_iou",
    "mse": "mse",
}
VARIANCES = {
    "variance_mse": "mse",
    "variance_spatiotemporal_iou": "spatiotemporal_iou",
    "variance_spatial": "spatial_iou",
    "variance_weighted_spatial": "weighted_spatial_iou",
}
# Fields of the metrics that are taken together over runs, in the official order, and their headings.
RUN_FIELDS: dict[ScoreType, dict[str, str]] = {
    "original": {
        "final_score_orig": "Phys-IQ orig.",
        "score_spatial": "SP orig.",
        "score_spatiotemporal": "ST orig.",
        "score_weighted_spatial": "WS orig.",
        "score_mse": "MSE orig.",
    },
    "verified": {
        "final_score_view": "Phys-IQ verified",
        "score_spatial_view": "SP verified",
        "score_spatiotemporal_view": "ST verified",
        "score_weighted_spatial_view": "WS verified",
        "score_mse_view": "MSE verified",
    },
}


def official_table(results: Results) -> str:
    """The results as CSV: a row per scenario, whose name ends with ``.mp4``, and twelve columns per view.

    Lists are written as ``[0.1, 0.2]``. The official reader takes every number it finds in a cell, so there must be
    nothing else in it.
    """
    by_scenario: dict[str, dict[str, Any]] = {}
    views = list(dict.fromkeys(view.view for view, _ in results))
    for view, result in results:
        row = by_scenario.setdefault(view.scenario, {"scenario": f"{view.scenario}.mp4"})
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
        "v1_mse": _floats(first.mse),
        "v2_mse": _floats(second.mse),
        "variance_spatial": float(variance.spatial_iou),
        "variance_weighted_spatial": float(variance.weighted_spatial_iou),
        "variance_spatiotemporal_iou": _floats(variance.spatiotemporal_iou),
        "variance_mse": _floats(variance.mse),
        "spatiotemporal_iou_v1": _floats(first.spatiotemporal_iou),
        "spatiotemporal_iou_v2": _floats(second.spatiotemporal_iou),
        "spatial_iou_v1": float(first.spatial_iou),
        "spatial_iou_v2": float(second.spatial_iou),
        "weighted_spatial_iou_v1": float(first.weighted_spatial_iou),
        "weighted_spatial_iou_v2": float(second.weighted_spatial_iou),
    }


def _floats(values: Sequence[float]) -> list[float]:
    return [float(value) for value in values]


def official_metrics(results: Sequence[ViewResult]) -> dict[str, float]:
    """The contents of ``NAME_metrics.json``; fractions, except ``final_score_origround``, which is in percent.

    Without suffix the parts are those of the whole set, with ``_view`` the components of the Verified score. Raises
    ValueError as :func:`metrics.physics_iq.scores.set_score` does.
    """
    whole, verified = set_score(results), verified_score(results)
    return {
        **{f"score_{name}": whole.parts[metric] for name, metric in PARTS.items()},
        "final_score_raw": whole.raw,
        "final_score_stable": whole.stable,
        "final_score_orig": whole.original,
        **{name: whole.variances[metric] for name, metric in VARIANCES.items()},
        "final_score_view": verified.score,
        **{f"score_{name}_view": verified.components[metric] for name, metric in PARTS.items()},
        "final_score_origround": original_score(results),
    }


def group_runs(names: Sequence[str]) -> dict[str, list[str]]:
    """Names of runs, ``MODEL-op-run_01``, by their models, ``MODEL-op``; ValueError for names of another form."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        match = RUN_NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"run {name!r} is not named MODEL-op-run_NN or MODEL-bpp-run_NN")
        groups.setdefault(match["model"], []).append(name)
    return groups


def aggregate(runs: Sequence[Mapping[str, float]], score_type: ScoreType) -> dict[str, dict[str, float | None]]:
    """Mean and sample standard deviation (n - 1) in percent over the runs of a model, by the names of the metrics.

    The deviation of a single run is None.
    """
    return {name: _spread([run[name] for run in runs]) for name in RUN_FIELDS[score_type]}


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    deviation = 100 * float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": 100 * float(np.mean(values)), "std": deviation}


def aggregate_table(model: str, runs: Sequence[Mapping[str, float]], score_type: ScoreType) -> str:
    """One row with the model's name and each mean and deviation, to two decimals; no deviation is an empty cell."""
    row: dict[str, str | float | None] = {"Model": model}
    for name, spread in aggregate(runs, score_type).items():
        for which, value in spread.items():
            row[f"{RUN_FIELDS[score_type][name]} {which}"] = None if value is None else float(np.round(value, 2))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(row), lineterminator="\n")
    writer.writeheader()
    writer.writerow(row)
    return text.getvalue()
