"""Pictures of a comparison: cost against PSNR, reuse maps, and how much latents change from step to step."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.compare.summary import Summary
from harness.outputs import FIGURE_MARK
from inference.files import replacing

matplotlib.use("Agg")

THEMES = {
    "light": {"ink": "#1b1f24", "paper": "#ffffff", "grid": "#d0d7de", "computed": "#1f4e79", "reused": "#f4b183"},
    "dark": {"ink": "#e6edf3", "paper": "#161b22", "grid": "#3d444d", "computed": "#58a6ff", "reused": "#7a4a1e"},
}
# Okabe and Ito's colours, told apart by most colour-blind people, and markers besides.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8c8c8c", "#a6761d")
_MARKERS = "osD^vPX*hp<>d"


@contextmanager
def _themed(theme: str) -> Iterator[dict[str, str]]:
    colours = THEMES[theme]
    ink, paper = colours["ink"], colours["paper"]
    settings = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink)
    settings |= dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"), paper)
    with plt.rc_context({**settings, "grid.color": colours["grid"], "font.size": 9}):
        yield colours


def _save(figure: Figure, path: Path) -> None:
    try:
        with replacing(path) as part:
            figure.savefig(part, dpi=140, format="png", metadata=FIGURE_MARK)
    finally:
        plt.close(figure)


def on_one_scale(table: Sequence[Summary]) -> list[Summary]:
    """The rows that are compared with the first reference, and differ from it."""
    first = next((row.name for row in table if row.reference is None), None)
    return [row for row in table if row.reference == first and row.psnr is not None and row.speedup is not None]


def draw_pareto(path: Path, table: Sequence[Summary], groups: Sequence[str], theme: str) -> None:
    """PSNR against what is saved, by operations and by seconds; a line a group. Upper right is better. Left out are
    methods with another reference than the first: figures of different key windows are not on one scale.
    """
    table = on_one_scale(table)
    with _themed(theme):
        figure, panels = plt.subplots(2, 1, figsize=(5.6, 8.4), layout="constrained", sharey=True)
        for number, group in enumerate(groups):
            rows = [row for row in table if row.group == group]
            if rows:
                _draw_family(panels, rows, group, number)
        panels[0].set_xlabel("floating point operations, times fewer")
        panels[1].set_xlabel("seconds of denoising, times fewer (bars: lowest to highest)")
        for axes in panels:
            _prepare(axes)
        if panels[0].get_legend_handles_labels()[0]:
            figure.legend(
                *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8
            )
        _save(figure, path)


def _draw_family(panels: Sequence[Axes], rows: Sequence[Summary], group: str, number: int) -> None:
    colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
    style = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.2, "label": group}
    rows = sorted(rows, key=lambda row: row.flop_ratio)
    psnr = [row.psnr.mean for row in rows]
    deviation = [row.psnr.std or 0.0 for row in rows]
    panels[0].errorbar([row.flop_ratio for row in rows], psnr, yerr=deviation, elinewidth=0.5, **style)
    rows = sorted(rows, key=lambda row: row.speedup.median)
    middle = [row.speedup.median for row in rows]
    below = [row.speedup.median - row.speedup.min for row in rows]
    above = [row.speedup.max - row.speedup.median for row in rows]
    panels[1].errorbar(middle, [row.psnr.mean for row in rows], xerr=[below, above], elinewidth=0.5, **style)


def _prepare(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=2, subs=(1.0, 1.5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.set_ylabel("PSNR against the uncached video (dB)")
    axes.grid(alpha=0.6)


def draw_reuse_maps(path: Path, maps: Mapping[str, Sequence[str]], theme: str) -> None:
    """Which chunk was computed at which step: a strip a method, rows are chunks, columns steps of the video."""
    with _themed(theme) as colours:
        chunks = max(len(rows) for rows in maps.values())
        height = 0.32 + 0.075 * chunks
        figure, panels = plt.subplots(
            len(maps), 1, figsize=(5.6, 0.5 + height * len(maps)), layout="constrained", squeeze=False
        )
        palette = ListedColormap([colours["paper"], colours["computed"], colours["reused"]])
        for axes, (name, rows) in zip(panels[:, 0], maps.items(), strict=True):
            marks = np.array([["-01".index(mark) for mark in row] for row in rows])
            axes.imshow(marks, aspect="auto", interpolation="nearest", cmap=palette, vmin=0, vmax=2)
            axes.set_title(name, fontsize=8, loc="left", pad=2)
            axes.set(xticks=[], yticks=[])
        legend = [Patch(color=colours[kind], label=kind) for kind in ("computed", "reused")]
        figure.legend(handles=legend, loc="outside upper right", ncols=2, frameon=False, fontsize=8)
        _save(figure, path)


def draw_changes(path: Path, changes: Sequence[Mapping[str, Any]], theme: str) -> None:
    """The relative-L1 change of each chunk from a step to the next, by the video's steps and by the chunk's own."""
    with _themed(theme):
        figure, panels = plt.subplots(2, 1, figsize=(5.6, 6.0), layout="constrained", sharey=True)
        chunks = sorted({entry["chunk"] for entry in changes})
        first = 0.35 if theme == "dark" else 0.1  # the map's darkest and brightest are lost on such paper
        for place, chunk in enumerate(chunks):
            own = [entry for entry in changes if entry["chunk"] == chunk]
            colour = plt.get_cmap("viridis")(first + 0.65 * place / max(len(chunks) - 1, 1))
            for axes, column in zip(panels, ("step", "index"), strict=True):
                values = [entry["change"] for entry in own]
                axes.plot([entry[column] for entry in own], values, color=colour, linewidth=1, label=f"chunk {chunk}")
        for axes, label in zip(panels, ("step of the video", "the chunk's own step"), strict=True):
            axes.set(yscale="log", xlabel=label, ylabel="relative-L1 change")
            axes.grid(alpha=0.6)
        figure.legend(
            *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8
        )
        _save(figure, path)
