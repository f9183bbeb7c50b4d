"""What a comparison leaves in its folder, from the results of its store (docs/compare.md, "What is written")."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.compare.goals import Outcome, judge
from benchmarks.compare.methods import Comparison, Entry, group_order
from benchmarks.compare.plots import THEMES, draw_changes, draw_pareto, draw_reuse_maps
from benchmarks.compare.report import Group, cells, describe_settings, html, markdown
from benchmarks.compare.store import HeldOut, Store
from benchmarks.compare.summary import Result, Summary, inconsistencies, summarise
from benchmarks.compare.video import write_side_by_side
from benchmarks.compare.words import captions, conditions, in_short, machine
from harness.json_files import commit, save_json
from harness.outputs import Inputs, check_outputs, is_our_figure, json_with
from inference.config import MagiConfig
from inference.files import replacing

TITLE = "Caching methods compared"
REPORTS = ("results.json", "table.md", "report.html")
SIDE_BY_SIDE = "side_by_side.mp4"
FIGURES = ("pareto*.png", "changes*.png", "reuse_map_*.png")


@dataclass(frozen=True)
class Finished:
    """A comparison whose videos are all made. `lpips_missing`: why LPIPS was not computed just now, if so."""

    comparison: Comparison
    config: MagiConfig
    entries: Sequence[Entry]
    samples: Sequence[HeldOut]
    store: Store
    skipped: dict[str, str]
    command: str
    device: torch.device
    lpips_missing: str | None


def check_folder(folder: Path, inputs: Inputs) -> None:
    """ValueError where ``write_outputs`` would replace an input, or a file that no comparison has left."""
    figures = [path for name in FIGURES for path in (folder / "figures").glob(name)]
    ours = json_with("comparison", "methods", "samples")

    def beside_ours(path: Path) -> bool:
        return ours(folder / REPORTS[0])

    others = dict.fromkeys((folder / name for name in (*REPORTS[1:], SIDE_BY_SIDE)), beside_ours)
    check_outputs({folder / REPORTS[0]: ours, **others, **dict.fromkeys(figures, is_our_figure)}, inputs)


def write_outputs(done: Finished) -> list[Path]:
    """Write all files; their paths."""
    folder = done.store.folder
    results = load_results(done)
    table = tabulate(done.entries, results)
    outcomes = [judge(goal, table) for goal in done.comparison.goals]
    every = [result for of_one in results.values() for result in of_one]
    warnings = _warnings(done, every)
    written = [folder / name for name in REPORTS]
    save_json(written[0], _record(done, table, outcomes, every, warnings))  # first: it says whose the others are
    figures, labels = _draw(done, table, results)
    video = _side_by_side(done)
    about = conditions(done.comparison, done.config, done.device, done.command, every)
    groups = _groups(done, table)

    contents = {"title": TITLE, "about": about, "warnings": warnings, "outcomes": outcomes, "groups": groups}
    page = {
        "figures": figures,
        "maps": labels,
        "video": video,
        "command": done.command,
        "captions": captions(done.samples[0].prompt),
    }
    texts = [
        markdown(TITLE, [*about, *warnings], groups, outcomes) + "\n",
        html(contents | page | {"summary": in_short(table)}),
    ]
    for path, text in zip(written[1:], texts, strict=True):
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
    return [*written, figures["pareto"]["light"], *([] if video is None else [video])]


def load_results(done: Finished) -> dict[str, list[Result]]:
    """Every method's results, in the order of the samples."""
    found: dict[str, list[Result]] = {}
    for entry in done.entries:
        for sample in done.samples:
            result = done.store.load(entry, sample)
            if result is None:
                raise ValueError(f"{done.store.path(entry, sample)} was removed during the run; start it again")
            found.setdefault(entry.name, []).append(result)
    return found


def tabulate(entries: Sequence[Entry], results: dict[str, list[Result]]) -> list[Summary]:
    table = []
    for entry in entries:
        originals = {} if entry.reference is None else {one.sample: one for one in results[entry.reference]}
        table.append(summarise(entry.name, entry.group, entry.reference, results[entry.name], originals))
    return table


def _record(
    done: Finished, table: Sequence[Summary], outcomes: Sequence[Outcome], every: Sequence[Result], warnings: list[str]
) -> dict[str, Any]:
    """The contents of results.json."""
    return {
        "what": "caching methods against the uncached video of the same noise, prompt and key window",
        "command": done.command,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "commits_of_results": sorted({str(result.commit) for result in every}),
        "machine": machine(done.device),
        "config": done.config.to_json_dict(full=True),
        "comparison": done.comparison.model_dump(mode="json"),
        "left_out": done.skipped,
        "warnings": warnings,
        "goals": [outcome.model_dump(mode="json") for outcome in outcomes],
        "methods": [
            row.model_dump(mode="json") | {"settings": entry.method.to_json_dict(), "how": describe_settings(entry)}
            for row, entry in zip(table, done.entries, strict=True)
        ],
        "samples": [result.model_dump(mode="json", exclude={"reuse_map"}) for result in every],
    }


def _warnings(done: Finished, every: Sequence[Result]) -> list[str]:
    found = []
    for reason in dict.fromkeys(done.skipped.values()):
        names = [name for name, own in done.skipped.items() if own == reason]
        found.append(f"left out: {', '.join(names)}; {reason}.")
    changed = inconsistencies(every)
    if changed:
        found.append(
            f"of {len(changed)} samples ({', '.join(changed[:5])}) the uncached video is not the one that some methods "
            "were compared with: what is computed changed between two runs; start again in another folder."
        )
    likeness = [result.likeness for result in every if result.likeness is not None and not result.likeness.identical]
    without = sum(one.lpips is None for one in likeness)
    if without:
        reason = f": {done.lpips_missing}" if done.lpips_missing else ""
        found.append(f"LPIPS is not available for {without} of {len(likeness)} videos{reason}.")
    return found


def _groups(done: Finished, table: Sequence[Summary]) -> list[Group]:
    how = {entry.name: describe_settings(entry) for entry in done.entries}
    has_lpips = any(row.lpips is not None for row in table)
    return [
        Group(
            name,
            done.comparison.groups[name],
            [cells(row, how[row.name], has_lpips) for row in table if row.group == name],
        )
        for name in group_order(done.comparison, list(done.entries))
    ]


def _draw(
    done: Finished, table: Sequence[Summary], results: dict[str, list[Result]]
) -> tuple[dict[str, dict[str, Path]], dict[str, str]]:
    """All pictures, by name and theme, and the labels of the reuse maps among them."""
    groups = group_order(done.comparison, list(done.entries))
    changes = done.store.load_changes(done.entries[0], done.samples[0]) or []
    maps = {}
    for number, group in enumerate(groups):
        rows = {entry.name: results[entry.name][0].reuse_map for entry in done.entries if entry.group == group}
        rows = {name: marks for name, marks in rows.items() if any("1" in row for row in marks)}
        if rows:
            maps[f"reuse_map_{number}"] = (group, rows)
    figures: dict[str, dict[str, Path]] = {}
    folder = done.store.folder / "figures"
    folder.mkdir(exist_ok=True)
    for theme in THEMES:
        end = ".png" if theme == "light" else f".{theme}.png"
        paths = {name: folder / f"{name}{end}" for name in ("pareto", "changes", *maps)}
        draw_pareto(paths["pareto"], table, groups, theme)
        draw_changes(paths["changes"], changes, theme)
        for name, (_, rows) in maps.items():
            draw_reuse_maps(paths[name], rows, theme)
        for name, path in paths.items():
            figures.setdefault(name, {})[theme] = path
    return figures, {name: group for name, (group, _) in maps.items()}


def _side_by_side(done: Finished) -> Path | None:
    shown = [entry for entry in done.entries if entry.shown]
    if not shown:
        return None
    path = done.store.folder / SIDE_BY_SIDE
    videos = {entry.name: done.store.load_frames(entry, done.samples[0]) for entry in shown}
    write_side_by_side(path, videos, done.config.runtime.fps)
    return path
