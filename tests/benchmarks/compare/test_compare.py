"""The comparison with a tiny model: what it writes, how it resumes; its arithmetic on numbers made by hand."""

import json
import logging
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest
import yaml

from example.nano.evaluate import prompt_of
from harness.calibration.files import conditions_of
from inference.config import load_config
from tests.loading import load_benchmark

CALIBRATED = {"name": "calibrated", "group": "patterns", "calibrated": "1/4"}
COMPARISON = {
    "num_frames": 48,
    "num_steps": 8,
    "prompts": 2,
    "lpips": False,
    "groups": {"uncached": "Everything.", "fewer steps": "Half of it.", "patterns": "A part, by <rules>.", "rule": "x"},
    "methods": [
        {"name": "uncached", "group": "uncached", "shown": True},
        {"name": "again", "group": "uncached"},
        {"name": "half", "group": "fewer steps", "steps": "1/2"},
        {"name": "every 2nd", "group": "patterns", "every": 2, "shown": True},
        {"name": "full", "group": "rule", "window": []},
        {
            "name": "rule",
            "group": "rule",
            "file": "configs/method/flowcache_published.yaml",
            "parameters": {"rel_l1_thresh": 2.0, "warmup_steps": 1, "compress_kv_cache": False},
        },
        CALIBRATED,
    ],
    "goals": [{"kind": "reach", "text": "half", "groups": ["patterns"], "computed": 0.6, "psnr": 100.0}],
}
MADE = ["uncached", "full", "again", "half", "every 2nd", "rule"]

Compare = Callable[..., int]


@pytest.fixture(scope="module")
def config_file(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model at the size of the scenes, so that task quality can be measured."""
    config = json.loads((checkpoint / "distill.json").read_text(encoding="utf-8"))
    config["runtime_config"] |= {"video_size_h": 64, "video_size_w": 64}
    path = tmp_path_factory.mktemp("config") / "tiny.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def compare(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Compare:
    """Call main; keywords replace fields of the comparison."""
    module, folder = load_benchmark("compare/main"), tmp_path_factory.mktemp("comparison")

    def run(output: Path, *flags: str, **changes: Any) -> int:
        file = folder / "tiny.yaml"
        contents = COMPARISON | {"config_file": str(config_file)} | changes
        file.write_text(yaml.safe_dump(contents, sort_keys=False), encoding="utf-8")
        return module.main(["--comparison", str(file), "--output", str(output), *flags])

    return run


@pytest.fixture(scope="module")
def made(compare: Compare, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one whole comparison. Tests that run in it leave its files as they are."""
    folder = tmp_path_factory.mktemp("made")
    assert compare(folder) == 0
    return folder


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in read(folder)["methods"]}


def files(folder: Path) -> dict[Path, int]:
    """Stored results with the time they were written."""
    return {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*.json")}


def test_results(made: Path) -> None:
    contents, table = read(made), rows(made)
    assert list(table) == MADE and len(contents["samples"]) == 2 * len(MADE)
    assert contents["machine"]["type"] == "cpu" and contents["config"]["runtime_config"]["num_frames"] == 48
    assert [sample["prompt"] for sample in contents["samples"][:2]] == [prompt_of(n, "captions")[1] for n in (0, 1)]
    assert list(contents["left_out"]) == ["calibrated"] and "scripts/calibrate.sh" in contents["left_out"]["calibrated"]
    assert contents["goals"][0]["met"] is False and "every 2nd" in contents["goals"][0]["found"]


def test_every_method_has_its_reference_and_its_figures(made: Path) -> None:
    table = rows(made)
    assert {name: row["reference"] for name, row in table.items()} == {
        **dict.fromkeys(("again", "half", "every 2nd"), "uncached"),
        **{"rule": "full", "uncached": None, "full": None},
    }
    again, half, every, rule = (table[name] for name in ("again", "half", "every 2nd", "rule"))
    assert again["identical"] == 2 and again["psnr"] is None and again["flop_share"] == 1
    assert half["computed_share"] == 0.5 and 0.45 < half["flop_share"] < 0.6
    assert every["computed_share"] == 0.5 and every["kv_share"] == 1
    assert 0 < rule["computed_share"] < 1 and rule["settings"]["rel_l1_thresh"] == 2.0
    for row in (half, every, rule):
        assert row["psnr"]["count"] == 2 and 0 < row["ssim"]["mean"] < 1 and row["lpips"] is None
        assert row["speedup"]["min"] <= row["speedup"]["median"] <= row["speedup"]["max"]
        assert row["quality"]["all"]["count"] == 2
        assert set(row["quality"]) == {"all", "background", "colour", "shape", "motion"}


def test_psnr_is_that_of_the_frames(made: Path) -> None:
    [uncached], [every] = ((made / "frames" / name).glob("*.npz") for name in ("uncached", "every_2nd"))
    difference = np.load(uncached)["frames"].astype(float) - np.load(every)["frames"].astype(float)
    psnr = 10 * math.log10(255**2 / np.mean(difference**2))
    [first] = [s for s in read(made)["samples"] if s["method"] == "every 2nd" and s["sample"] == "captions-0-0"]
    assert first["likeness"]["psnr"] == pytest.approx(psnr, abs=1e-9)


def test_reuse_map_and_changes(made: Path) -> None:
    [path] = (made / "results" / "every_2nd").glob("captions-0-0.*")
    assert json.loads(path.read_text(encoding="utf-8"))["reuse_map"] == ["01010101--", "--01010101"]
    [path] = (made / "changes").rglob("*.json")
    changes = json.loads(path.read_text(encoding="utf-8"))
    assert [(one["chunk"], one["index"]) for one in changes if one["step"] == 3] == [(0, 3), (1, 1)]
    assert len(changes) == 2 * 7 and all(one["change"] > 0 for one in changes)


def test_report_needs_no_other_file(made: Path) -> None:
    page = (made / "report.html").read_text(encoding="utf-8")
    assert "http:" not in page and "https:" not in page and "url(" not in page
    sources = re.findall(r'(?:src|srcset|href|poster)="([^"]*)"', page)
    assert len(sources) == 2 * 4 + 1 and all(re.match("data:(image/png|video/mp4);base64,", one) for one in sources)
    for words in ("Goals", "every 2nd", "A part, by &lt;rules&gt;.", "scripts/compare.sh", "window 5,4,3,2", "offload"):
        assert words in page
    assert (made / "figures" / "pareto.png").is_file() and (made / "figures" / "changes.png").is_file()
    table = (made / "table.md").read_text(encoding="utf-8")
    assert re.search(r"\| every 2nd \| 1\.\d+ \| .*\| 50\.0% \|", table) and "calibrated" in table


def test_side_by_side(made: Path) -> None:
    with av.open(str(made / "side_by_side.mp4")) as container:
        shapes = {frame.to_ndarray(format="rgb24").shape for frame in container.decode(video=0)}
        assert container.streams.video[0].frames == 48
    assert shapes == {(6 + 22 + 192 + 6, 6 + 2 * (192 + 6), 3)}


def test_resuming(made: Path, compare: Compare, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    before = files(made)
    [lost] = (made / "results" / "half").glob("captions-1-0.*")
    lost.unlink()
    assert compare(made) == 0
    after = files(made)
    # The reference is made again too: seconds are compared with those of the same process.
    again = {path.parent.name for path in after if after[path] != before[path]}
    assert " 2 videos to make" in caplog.text and set(after) == set(before) and again == {"half", "uncached"}
    assert not any("between two runs" in warning for warning in read(made)["warnings"])


@pytest.mark.parametrize(
    "place",
    ["results.json", "table.md", "report.html", "side_by_side.mp4", "figures/pareto.png", "figures/changes.dark.png"],
)
def test_files_of_others_are_not_replaced(
    made: Path, compare: Compare, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    folders = [tmp_path / "new"]
    if place.endswith(("png", "json")):
        folders.append(shutil.copytree(made, tmp_path / "made"))
    for folder in folders:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text("{}", encoding="utf-8")
        assert compare(folder) == 1
        assert f"{folder / place} would be replaced, but this program has not left it" in caplog.text
        assert (folder / place).read_text() == "{}"


def test_changed_settings_are_not_mixed(made: Path, compare: Compare, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    before, contents = files(made), (made / "results.json").read_bytes()
    assert compare(made, "--num_frames", "24", "--methods", "half", "--prompts", "1") == 0
    assert " 2 videos to make" in caplog.text and list(rows(made)) == ["uncached", "half"]
    assert read(made)["config"]["runtime_config"]["num_frames"] == 24
    assert len(files(made)) == len(before) + 2 and all(files(made)[path] == when for path, when in before.items())
    before = files(made)
    assert compare(made) == 0
    assert " 0 videos to make" in caplog.text and files(made) == before
    assert json.loads(contents)["samples"] == read(made)["samples"]


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({}, ["--methods", "nothing"], "no method or group is called 'nothing'"),
        ({"groups": {"uncached": "x"}}, [], "groups without a description: fewer steps, patterns, rule"),
        ({"methods": COMPARISON["methods"][3:4], "goals": []}, [], "no uncached method with key window [5, 4, 3, 2]"),
        ({"methods": COMPARISON["methods"][:1] * 2, "goals": []}, [], "methods named twice: uncached"),
        ({"methods": [{"name": "a", "group": "rule", "steps": "1/3"}], "goals": []}, [], "1/3 of 8 steps is no whole"),
        ({"methods": [{"name": "a", "group": "rule", "steps": "3/2"}], "goals": []}, [], "at most 1, not 3/2"),
        ({"speed": 3}, [], "unknown parameter 'speed'"),
    ],
)
def test_bad_comparisons(
    changes: dict, flags: list[str], message: str, compare: Compare, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert compare(tmp_path / "out", *flags, **changes) == 1
    assert message in caplog.text and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["full", "quick"])
def test_shipped_comparisons(name: str) -> None:
    methods = load_benchmark("compare/methods")
    comparison = methods.read_comparison(f"configs/compare/{name}.yaml", {})
    entries, _ = methods.make_entries(comparison, methods.base_config(comparison), None)
    assert len(entries) > 10 and sum(entry.shown for entry in entries) >= 5
    assert {goal.kind for goal in comparison.goals} >= {"margin"}


def test_a_calibrated_pattern(config_file: Path, tmp_path: Path) -> None:
    methods = load_benchmark("compare/methods")
    contents = COMPARISON | {"config_file": str(config_file), "methods": [*COMPARISON["methods"][:1], CALIBRATED]}
    file, calibration = tmp_path / "tiny.yaml", tmp_path / "calibration.json"
    file.write_text(yaml.safe_dump(contents), encoding="utf-8")
    comparison = methods.read_comparison(str(file), {"calibration": str(calibration)})
    config = methods.base_config(comparison)
    ratio = {"median": 1, "min": 1, "max": 1}
    shared = {
        "psnr": [1],
        "checked_psnr": [1],
        "discard_nearly_clean_chunk": False,
        "flop_ratio": 1,
        "seconds_ratio": ratio,
    }
    found = {
        **{"about": {}, "conditions": conditions_of(config), "damping": 0.5, "correct": False},
        "entries": [{"pattern": [0], **shared}, {"pattern": [0, 5], **shared}],
    }
    calibration.write_text(json.dumps(found), encoding="utf-8")
    [_, entry], skipped = methods.make_entries(comparison, config, None)
    settings = entry.method.settings
    assert not skipped and (settings.pattern, settings.pattern_steps, settings.damping) == ((0, 5), 8, 0.5)
    assert settings.solver is None
    fitted = contents["methods"][1] | {"fitted": True}
    file.write_text(yaml.safe_dump(contents | {"methods": [contents["methods"][0], fitted]}), encoding="utf-8")
    comparison = methods.read_comparison(str(file), {"calibration": str(calibration)})
    with pytest.raises(ValueError, match=r"no fitted solver of 2 steps; it has \[\]"):
        methods.make_entries(comparison, config, None)
    solver = {"levels": [0.0, 0.5], "first": [[1.0], [1.0, 2.0]], "later": [[1.0], [1.0, 2.0]]}
    entries = [*found["entries"], {"pattern": [0, 5], "solver": solver, **shared}]
    calibration.write_text(json.dumps(found | {"entries": entries}), encoding="utf-8")
    [_, entry], _ = methods.make_entries(comparison, config, None)
    assert entry.method.settings.solver.model_dump(mode="json") == solver
    found["conditions"]["num_layers"] = 99
    calibration.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(ValueError, match="made with num_layers 99, not 2"):
        methods.make_entries(comparison, config, None)


def test_other_weights_are_seen(config_file: Path, checkpoint_copy: Path) -> None:
    store, config = load_benchmark("compare/store"), load_config(checkpoint_copy / "distill.json")
    before = store.weights_digest(config)
    assert before == store.weights_digest(config) == store.weights_digest(load_config(config_file))
    with (checkpoint_copy / "special_tokens.npz").open("ab") as file:
        file.write(b"x")
    assert store.weights_digest(config) != before


# Arithmetic.


def work(seconds: float, flop: int, computed: int, kv: int = 100) -> dict[str, Any]:
    return {
        **{"seconds": seconds, "total_seconds": seconds + 1, "flop": flop, "computed": computed, "reused": 0},
        "kv_cache_bytes": kv,
    }


def result(summary: ModuleType, sample: str, own: dict, whole: dict | None, psnr: float | None, right: bool) -> Any:
    likeness = {"identical": psnr is None, "psnr": psnr, "psnr_frame_mean": psnr, "ssim": 0.5, "lpips": None}
    return summary.Result.model_validate(
        {
            **{"method": "m", "sample": sample, "prompt": "p", "work": own, "digest": "d", "reference": whole},
            **{"reference_digest": None if whole is None else "w", "likeness": None if whole is None else likeness},
            **{"quality": {"colour": True, "shape": right}, "reuse_map": [], "session": "s", "commit": None},
        }
    )


def test_summary_of_numbers_made_by_hand() -> None:
    summary = load_benchmark("compare/summary")
    wholes = [result(summary, str(n), work(10, 1000, 40), None, None, right) for n, right in enumerate((1, 1, 0))]
    results = [
        result(summary, "0", work(5, 500, 10, kv=50), work(10, 1000, 40), 30.0, False),
        result(summary, "1", work(4, 300, 10, kv=50), work(12, 1000, 40), 40.0, True),
        result(summary, "2", work(2, 100, 10, kv=50), work(10, 1000, 40), None, True),
    ]
    row = summary.summarise("m", "g", "whole", results, {one.sample: one for one in wholes})
    assert (row.speedup.median, row.speedup.min, row.speedup.max) == (3, 2, 5)
    assert row.flop_share == pytest.approx(0.3) and row.flop_ratio == pytest.approx(1 / 0.3)
    assert row.computed_share == 0.25 and row.kv_share == 0.5 and row.seconds == 4 and row.flop == 300
    assert (row.psnr.mean, row.psnr.std, row.psnr.count, row.identical) == (35, pytest.approx(50**0.5), 2, 1)
    assert (row.psnr.min, row.psnr.low_end) == (30, pytest.approx(30.5))
    assert row.lpips is None and row.ssim.mean == 0.5
    assert (row.quality["all"].right, row.quality["colour"].right, row.lost, row.gained) == (2, 3, 1, 1)
    whole = summary.summarise("whole", "g", None, wholes, {})
    assert whole.speedup is None and whole.flop_share == 1 and whole.psnr is None and whole.lost == 0


def test_the_low_end_stands_beside_the_mean() -> None:
    goals, report = load_benchmark("compare/goals"), load_benchmark("compare/report")
    row = table_row(goals, "m", "g", 0.5, 40.0)
    row = row.model_copy(update={"psnr": row.psnr.model_copy(update={"low_end": 31.26, "min": 24.0})})
    assert report.cells(row, "", False)["low"] == "31.3, 24.0" and "low" in report.COLUMNS
    assert report.cells(row.model_copy(update={"reference": None, "psnr": None}), "", False)["low"] == ""


def test_a_changed_uncached_video_is_seen() -> None:
    summary = load_benchmark("compare/summary")
    whole, own = (result(summary, "0", work(1, 1, 1), w, 30.0, True) for w in (None, work(1, 1, 1)))
    assert summary.inconsistencies([whole.model_copy(update={"digest": "w"}), own]) == []
    assert summary.inconsistencies([whole, own]) == ["0"]


@pytest.mark.parametrize(
    ("right", "count", "low", "high"), [(0, 10, 0, 0.2775), (10, 10, 0.7225, 1), (81, 263, 0.2553, 0.3662)]
)
def test_wilson(right: int, count: int, low: float, high: float) -> None:
    """The last one is Newcombe's example (Statistics in Medicine, 1998)."""
    assert load_benchmark("compare/summary").wilson(right, count) == pytest.approx((low, high), abs=1e-4)


def table_row(goals: ModuleType, name: str, group: str, share: float, psnr: float, lost: int = 0) -> Any:
    mean = {"mean": psnr, "std": None, "low_end": psnr, "min": psnr, "max": psnr, "count": 9}
    return goals.Summary.model_validate(
        {
            **{"name": name, "group": group, "reference": "whole", "samples": 9, "seconds": 1, "total_seconds": 1},
            **{"speedup": None, "flop": 1, "flop_share": share, "computed_share": share / 2, "kv_cache_bytes": 1},
            **{"kv_share": 1, "identical": 0, "psnr": mean, "ssim": None, "lpips": None, "lost": lost, "gained": 0},
            "quality": {"all": {"right": 9 - lost, "count": 9, "low": 0, "high": 1}},
        }
    )


def test_one_plot_has_one_key_window() -> None:
    plots, goals = load_benchmark("compare/plots"), load_benchmark("compare/goals")
    speedup = goals.Summary.model_fields["speedup"].annotation.__args__[0](median=1, min=1, max=1)
    made = table_row(goals, "made", "ours", 0.5, 40.0).model_copy(update={"speedup": speedup})
    whole = made.model_copy(update={"name": "whole", "reference": None, "psnr": None})
    table = [
        whole,
        whole.model_copy(update={"name": "other window"}),
        made,
        made.model_copy(update={"name": "in the other", "reference": "other window"}),
        made.model_copy(update={"name": "identical", "psnr": None}),
    ]
    assert [row.name for row in plots.on_one_scale(table)] == ["made"]


@pytest.mark.parametrize(
    ("goal", "met", "found"),
    [
        ({"kind": "reach", "computed": 0.14, "psnr": 40.0}, True, "best: good (12.5%, 40.0 dB)"),
        ({"kind": "reach", "computed": 0.14, "psnr": 40.1}, False, "40.0 dB"),
        ({"kind": "reach", "computed": 0.1, "psnr": 1.0}, None, "no method computes at most 10%"),
        # Between 20 dB at 1/8 and 30 dB at 1/2, 1/4 lies halfway by its logarithm.
        ({"kind": "margin", "rival": "theirs", "by": 15.0}, True, "+15.0 dB, good (25.0%, 40.0 dB) against 25.0 dB"),
        ({"kind": "margin", "rival": "theirs", "by": 15.1}, False, "0 of 1 reach it; smallest: "),
        ({"kind": "margin", "rival": "theirs", "by": 1.0, "most": 0.2}, None, "costs as much"),
        ({"kind": "dominates", "rival": "theirs"}, False, "none of ours costs as little as a (12.5%, 20.0 dB)"),
        ({"kind": "quality"}, True, "worst: best, 4 of 9 videos became wrong and 0 right"),
    ],
)
def test_goals(goal: dict[str, Any], met: bool | None, found: str) -> None:
    goals = load_benchmark("compare/goals")
    table = [
        table_row(goals, "good", "ours", 0.25, 40.0),
        table_row(goals, "best", "ours", 0.9, 60.0, lost=4),
        table_row(goals, "a", "theirs", 0.125, 20.0),
        table_row(goals, "b", "theirs", 0.5, 30.0),
    ]
    kinds = {"reach": goals.Reach, "margin": goals.Margin, "dominates": goals.Dominates, "quality": goals.Quality}
    outcome = goals.judge(kinds[goal["kind"]](text="t", groups=["ours"], **goal), table)
    assert outcome.met is met and found in outcome.found
    if goal["kind"] == "dominates":
        assert goals.judge(kinds["dominates"](text="t", groups=["ours"], **goal), [*table[:2], table[3]]).met
    if goal["kind"] == "quality":
        worse = [table_row(goals, "bad", "ours", 0.9, 60.0, lost=5)]
        assert goals.judge(kinds["quality"](text="t", groups=["ours"], **goal), worse).met is False
