"""The evaluator's environment: what is called to make it, and what the table says of it."""

import sys
from pathlib import Path

import pytest

from inference.config import REPOSITORY_ROOT
from metrics.vbench import DIMENSIONS
from sampling.evaluator import setup
from sampling.evaluator.log import EvaluatorError
from sampling.evaluator.setup import LONG_TABLES, PINS, WEIGHTS, Survey, describe, set_up, survey

# As uv does, as far as the set-up asks for it: an environment is a folder with a Python.
UV = """#!/bin/sh
echo "$@" >> {calls}
case "$*" in
  venv*) for folder in "$@"; do :; done; mkdir -p "$folder/bin"; ln -s {python} "$folder/bin/python" ;;
  *detectron2*) exit {detectron2} ;;
  *-r*) exit {pins} ;;
esac
"""


def fake_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pins: int = 0, detectron2: int = 1) -> Path:
    """The file of its calls."""
    command, calls = tmp_path / "uv", tmp_path / "calls"
    command.write_text(UV.format(calls=calls, python=sys.executable, pins=pins, detectron2=detectron2))
    command.chmod(0o755)
    monkeypatch.setattr(setup, "find_uv", lambda: [str(command)])
    return calls


def test_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    calls = fake_uv(tmp_path, monkeypatch)
    python = set_up(tmp_path / "vbench")
    assert python == tmp_path / "vbench/bin/python" and python.is_symlink()
    made = calls.read_text().splitlines()
    assert made[0] == f"venv --python 3.11 {tmp_path}/vbench"
    assert made[1] == f"pip install --python {python} -r {REPOSITORY_ROOT / PINS}"
    assert "detectron2 could not be built" in caplog.text
    set_up(tmp_path / "vbench")
    assert [line.split()[0] for line in calls.read_text().splitlines()[len(made) :]] == ["pip", "pip"]


def test_a_step_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_uv(tmp_path, monkeypatch, pins=3)
    with pytest.raises(EvaluatorError, match=r"pip install .*vbench_environment.txt` ended with status 3"):
        set_up(tmp_path / "vbench")


def test_every_dimension_is_tried() -> None:
    """In this environment, which has neither package."""
    found = survey(Path(sys.executable))
    assert set(found.standard) == set(found.long) == set(DIMENSIONS) == set(WEIGHTS)
    assert all(error and "No module named 'vbench'" in error for error in found.standard.values())
    with pytest.raises(EvaluatorError, match="cannot be run"):
        survey(Path("/nowhere/python"))


def test_the_table_says_what_is_missing(tmp_path: Path) -> None:
    package = tmp_path / "vbench2_beta_long"
    (package / "configs").mkdir(parents=True)
    roots = {"vbench": tmp_path / "cache", "clip": tmp_path / "clip", "hub": tmp_path / "hub", "long": package}
    for root, name, _ in WEIGHTS["aesthetic_quality"]:
        (roots[root] / name).parent.mkdir(parents=True, exist_ok=True)
        (roots[root] / name).write_bytes(b"weights")
    errors = dict.fromkeys(DIMENSIONS) | {"color": "ModuleNotFoundError: No module named 'detectron2'"}
    found = Survey(errors, dict.fromkeys(DIMENSIONS), roots, gpus=0)
    lines = list(describe(found))
    table = {line.split()[0]: line.split()[1:] for line in lines[1:17]}
    assert set(table) == set(DIMENSIONS)
    assert table["aesthetic_quality"] == ["yes", "yes", "there"]
    assert table["color"] == ["no", "yes", "1", "of", "1", "to", "fetch"]
    text = "\n".join(lines)
    assert "VBench cannot judge color: ModuleNotFoundError: No module named 'detectron2'" in text
    assert "VBench-Long cannot" not in text and "raft" not in text.replace("models.zip", "")
    assert text.count("grit_b_densecap_objectdet.pth") == 1 and "ViT-L-14" not in text
    assert "VBench-Long's tables are to be fetched" in text and "No GPU is here" in text
    for name in LONG_TABLES:
        (package / "configs" / name).write_text("0.0: 0.0\n")
    assert "tables are to be fetched" not in "\n".join(describe(found))


def test_tables_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    package = tmp_path / "package"
    package.mkdir()
    there = Survey({}, {}, {"long": package}, gpus=0)
    monkeypatch.setattr(setup, "survey", lambda python, dimensions: there)
    source = tmp_path / "source"
    source.mkdir()
    monkeypatch.setattr(setup, "LONG_TABLES_FROM", f"{source.as_uri()}/")
    setup.add_long_tables(Path("python"))
    assert "cannot be fetched" in caplog.text and not (package / "configs").exists()
    for name in LONG_TABLES:
        (source / name).write_text(f"{name}: 1\n")
    setup.add_long_tables(Path("python"))
    assert {path.name: path.read_text() for path in (package / "configs").iterdir()} == {
        name: f"{name}: 1\n" for name in LONG_TABLES
    }
    (source / LONG_TABLES[0]).write_text("other\n")
    setup.add_long_tables(Path("python"))
    assert (package / "configs" / LONG_TABLES[0]).read_text() == f"{LONG_TABLES[0]}: 1\n"
