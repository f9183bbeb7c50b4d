"""A reader of Physics-IQ tables that takes only what the official readers understand, and plain sums over what it read.

Nothing of the program is used here: names, forms and formulas are written down a second time.
"""

import csv
import io
import re
from statistics import fmean

VIEWS = ("perspective-left", "perspective-center", "perspective-right")
LISTS = (
    *("v1_mse", "v2_mse", "variance_spatiotemporal_iou", "variance_mse"),
    *("spatiotemporal_iou_v1", "spatiotemporal_iou_v2"),
)
NUMBERS = (
    *("variance_spatial", "variance_weighted_spatial", "spatial_iou_v1", "spatial_iou_v2"),
    *("weighted_spatial_iou_v1", "weighted_spatial_iou_v2"),
)
NUMBER = r"[-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?"

Row = dict[str, str | float | list[float]]


def read_table(text: str, views: tuple[str, ...] = VIEWS) -> list[Row]:
    """The rows of a table, list entries rounded to four decimals; AssertionError for anything that is out of form."""
    reader = csv.DictReader(io.StringIO(text), strict=True)
    expected = {"scenario", *(f"{name}_{view}" for name in (*LISTS, *NUMBERS) for view in views)}
    assert set(reader.fieldnames or ()) == expected and len(reader.fieldnames or ()) == len(expected)
    return [_row(row) for row in reader]


def _row(cells: dict[str, str]) -> Row:
    row: Row = {}
    for column, cell in cells.items():
        name = column.rpartition("_")[0]
        if column == "scenario":
            assert re.fullmatch(r"trimmed-[^_]+\.mp4", cell), f"{cell!r} is no scenario"
            row[column] = cell
        elif name in LISTS:
            assert re.fullmatch(rf"\[{NUMBER}(, {NUMBER})*\]", cell), f"{column}: {cell[:60]!r} is no list of numbers"
            row[column] = [round(float(entry), 4) for entry in cell[1:-1].split(", ")]
        else:
            assert re.fullmatch(NUMBER, cell), f"{column}: {cell!r} is no number"
            row[column] = float(cell)
    return row


def scores_of(rows: list[Row], views: tuple[str, ...] = VIEWS) -> dict[str, float]:
    """What the official tool computes from a table, in its names and scales, by plain sums."""

    def value(row: Row, column: str) -> float:
        cell = row[column]
        assert not isinstance(cell, str)
        return fmean(cell) if isinstance(cell, list) else cell

    def over_all(name: str) -> float:
        return fmean(value(row, f"{name}_{view}") for row in rows for view in views)

    def clip(number: float) -> float:
        return min(max(number, 0.0), 1.0)

    pairs = {
        "spatiotemporal": ("spatiotemporal_iou_v1", "variance_spatiotemporal_iou"),
        "spatial": ("spatial_iou_v1", "variance_spatial"),
        "weighted_spatial": ("weighted_spatial_iou_v1", "variance_weighted_spatial"),
        "mse": ("v1_mse", "variance_mse"),
    }
    names = list(pairs)[:3]
    parts = {name: over_all(pairs[name][0]) / over_all(pairs[name][1]) for name in names}
    parts["mse"] = over_all("v1_mse") - over_all("variance_mse")
    raw = sum(parts[name] for name in names) / 3 - parts["mse"]
    stable = clip(sum(clip(parts[name]) for name in names) / 3 - clip(parts["mse"]))
    of_views: dict[str, list[float]] = {name: [] for name in pairs}
    for row in rows:
        for view in views:
            for name, (found, variance) in pairs.items():
                ratio = value(row, f"{found}_{view}") / (value(row, f"{variance}_{view}") + 1e-8)
                if name == "mse":
                    ratio = 1 / ratio if ratio else 1.0
                of_views[name].append(clip(ratio))
    return {
        **{f"score_{name}": part for name, part in parts.items()},
        "final_score_raw": raw,
        "final_score_stable": stable,
        "final_score_orig": clip(raw),
        **{name: over_all(name) for name in ("variance_mse", "variance_spatiotemporal_iou")},
        **{name: over_all(name) for name in ("variance_spatial", "variance_weighted_spatial")},
        "final_score_view": fmean(fmean(each) for each in of_views.values()),
        **{f"score_{name}_view": fmean(each) for name, each in of_views.items()},
    }
