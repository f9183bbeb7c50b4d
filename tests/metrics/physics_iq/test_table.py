"""The table of the views of Physics-IQ: which rows count, and tables that make no sense.

That all 198 names of a table of the real size are read is in tests/sampling/test_physics_iq.py.
"""

from pathlib import Path

import pytest

from metrics.physics_iq.table import find_descriptions, read_descriptions

HEADER = "scenario,description,category,generated_video_name\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_the_first_row_of_a_view_counts(tmp_path: Path) -> None:
    rows = (
        "a_take-1,It slides.,Optics,0001_perspective-left_trimmed-slide.mp4\n"
        "b_take-1,It pours.,Fluid Dynamics,0002_perspective-left_trimmed-pour.mp4\n"
        "a_take-2,It slid.,Optics,0001_perspective-left_trimmed-slide.mp4\n"
        "b_take-2,It pours.,Fluid Dynamics,0004_perspective-left_trimmed-pour.mp4\n"
    )
    first, second = read_descriptions(write(tmp_path / "table.csv", HEADER + rows))
    assert (first.number, first.view, first.scenario) == ("0001", "perspective-left", "trimmed-slide")
    assert (first.category, first.description) == ("Optics", "It slides.")
    assert second.generated_name == "0002_perspective-left_trimmed-pour.mp4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scenario,category\n", "no column description, generated_video_name"),
        (HEADER, "lists no videos"),
        (HEADER + "a,b,c,0001_left_x.mp4\n", "line 2: '0001_left_x.mp4' is not"),
        (HEADER + "a,b,c\n", "line 2: '' is not"),
        (
            HEADER + "a,,c,0001_perspective-left_x.mp4\n",
            "line 2: the description of 0001_perspective-left_x.mp4 is empty",
        ),
        (
            HEADER + "a,b,c,0001_perspective-left_x.mp4\na,b,c,0001_perspective-center_x.mp4\n",
            "line 3: 0001_perspective-center_x.mp4 where number 0002 follows",
        ),
        (HEADER + "a,b,c,0002_perspective-left_x.mp4\n", "where number 0001 follows"),
    ],
)
def test_tables_that_make_no_sense(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_descriptions(write(tmp_path / "descriptions.csv", text))


def test_where_tables_are(tmp_path: Path) -> None:
    tree = tmp_path / "physics-IQ-benchmark"
    (tree / "switch-frames").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match=r"no descriptions \(original\) for .*: tried .*descriptions_original\.csv"
    ):
        find_descriptions(tmp_path)
    beside = write(tmp_path / "descriptions" / "descriptions.csv", HEADER)
    best = write(tree / "best_practice" / "descriptions_base.csv", HEADER)
    for data in (tmp_path, tree):
        assert find_descriptions(data) == find_descriptions(data, "op") == beside
        assert find_descriptions(data, "bpp") == best
    inside = write(tree / "descriptions_original.csv", HEADER)
    assert (find_descriptions(tree), find_descriptions(tree, "op")) == (beside, inside)
