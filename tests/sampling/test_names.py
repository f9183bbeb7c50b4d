"""Names that some disks take for one. Disks of tests keep names apart, so one that does not is pretended here."""

import unicodedata
from pathlib import Path
from types import ModuleType

import pytest

from sampling import names
from sampling.names import alike_names, is_one_name
from tests.loading import load_script
from tests.tiny_runs import write_prompts, write_run

COMPOSED, APART = "caf\N{LATIN SMALL LETTER E WITH ACUTE}-0.mp4", "cafe\N{COMBINING ACUTE ACCENT}-0.mp4"


def ignores_case_and_composition(folder: Path, first: str, other: str) -> bool:
    """What `is_one_name` gives on a disk like that of a Mac."""
    return unicodedata.normalize("NFD", first).lower() == unicodedata.normalize("NFD", other).lower()


@pytest.fixture(scope="module")
def sample() -> ModuleType:
    return load_script("sample")


def test_alike_are_names_that_differ_in_case_or_composition() -> None:
    paths = [Path("scene") / name for name in ("a cat-0.mp4", "A cat-0.mp4", "a dog-0.mp4", COMPOSED, APART)]
    found = alike_names([*paths, Path("color/a cat-0.mp4")])
    assert found == [(paths[0], paths[1]), (paths[3], paths[4])]


def test_the_disk_is_asked_and_keeps_nothing_of_it(tmp_path: Path) -> None:
    assert is_one_name(tmp_path, "a.mp4", "./a.mp4")
    assert not is_one_name(tmp_path, "a.mp4", "b.mp4")
    assert not list(tmp_path.iterdir())


def test_a_run_is_refused_before_anything_is_made(
    sample: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_prompts(tmp_path, {"scene": 2}, ("a fantasy landscape", "A fantasy landscape"))
    config = write_run(
        tmp_path,
        tmp_path,
        config_file="configs/model/nano.json",
        dimensions=["background_consistency"],
        samples_per_prompt=1,
        num_frames=24,
    )
    monkeypatch.setattr(names, "is_one_name", ignores_case_and_composition)
    assert sample.main([str(config)]) != 0
    assert "scene: 'a fantasy landscape-0.mp4' and 'A fantasy landscape-0.mp4'" in caplog.text
    assert "for one, so samples would replace each other" in caplog.text
    assert not list(tmp_path.glob("**/*.mp4"))
