"""States on the disk: which one counts, and what is refused."""

from pathlib import Path

import pytest
import torch

from harness.run.state import StateFolder, differences, state_bytes


def test_what_is_saved_is_loaded_and_replaces_what_is_older(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "video.mp4")
    assert folder.newest() is None
    state = {"run": {"a": 1}, "tensors": [{3: torch.arange(4.0)}, (None, "b", 2.5)]}
    for chunk in (0, 9, 10):
        folder.save(chunk, state)
    assert sorted(path.name for path in (tmp_path / "video.state").iterdir()) == ["10.0.pt"]
    loaded = folder.load(folder.newest())
    assert loaded["run"] == {"a": 1} and torch.equal(loaded["tensors"][0][3], torch.arange(4.0))
    assert state_bytes(loaded) == 16


def test_of_several_ranks_the_last_chunk_that_all_have_counts(tmp_path: Path) -> None:
    ranks = [StateFolder(tmp_path / "video.mp4", rank, 2) for rank in range(2)]
    for rank, chunk in [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]:
        ranks[rank].save(chunk, {"rank": rank})
    # The second was killed before it had saved.
    assert [folder.newest() for folder in ranks] == [1, 1]
    assert [folder.load(1)["rank"] for folder in ranks] == [0, 1]
    assert StateFolder(tmp_path / "video.mp4", 0, 4).newest() is None


def test_remains_and_foreign_files(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "video.mp4")
    folder.save(4, {})
    (folder.path / ".~0123.part").write_bytes(b"half")
    (folder.path / "notes.txt").write_text("mine", encoding="utf-8")
    folder.tidy()
    assert sorted(path.name for path in folder.path.iterdir()) == ["4.0.pt", "notes.txt"]
    folder.remove()
    assert [path.name for path in folder.path.iterdir()] == ["notes.txt"]
    (folder.path / "notes.txt").unlink()
    folder.remove()
    assert not folder.path.exists()


@pytest.mark.parametrize("content", [b"", b"no state", b"PK\x03\x04 half of one"])
def test_damaged_states_are_refused(tmp_path: Path, content: bytes) -> None:
    folder = StateFolder(tmp_path / "video.mp4")
    folder.save(4, {})
    (folder.path / "4.0.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"4\.0\.pt is damaged .*; remove .*video\.state to begin anew"):
        folder.load(4)


def test_a_state_of_another_version_and_a_file_in_its_place(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "video.mp4")
    folder.path.mkdir()
    torch.save({"format": 999}, folder.path / "4.0.pt")
    with pytest.raises(ValueError, match="was not left by this version"):
        folder.load(4)
    (tmp_path / "other.state").write_bytes(b"")
    with pytest.raises(ValueError, match=r"other\.state would hold the state of the run, but it is a file"):
        StateFolder(tmp_path / "other.mp4").newest()


def test_differences_are_told_in_words() -> None:
    saved = {"config": {"seed": 1, "size": [8, 8]}, "prompts": {"0": "a cat"}, "same": 2}
    now = {"config": {"seed": 2, "size": [8, 8]}, "prompts": {"0": "a cat", "3": "a dog"}, "same": 2}
    assert differences(saved, now) == ["config.seed was 1 and is 2", "prompts.3 was not given and is a dog"]
