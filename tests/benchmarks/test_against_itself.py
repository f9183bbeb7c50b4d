"""A forward of this checkout against that of a revision: the same numbers from HEAD, and an unknown one is refused."""

import json
from pathlib import Path

import pytest

from tests.loading import load_benchmark


@pytest.mark.slow
def test_the_last_revision_gives_the_same_numbers(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    script = load_benchmark("against_itself/main")
    assert script.main(["HEAD", "--sizes", "tiny", "--rounds", "2", "--device", "cpu", "--output", str(output)]) == 0
    result = json.loads(output.read_text(encoding="utf-8"))
    row = result["sizes"]["tiny"]
    assert row["relative_difference"] < 1e-5 and 0 < row["range"][0] <= row["ratio"] <= row["range"][1]
    assert len(result["earlier"]) == 40


def test_an_unknown_revision_is_refused(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    script = load_benchmark("against_itself/main")
    assert script.main(["no-such-revision"]) == 1
    assert "git knows no revision 'no-such-revision' here" in caplog.text + capsys.readouterr().err
