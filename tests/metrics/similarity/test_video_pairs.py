"""Which videos belong together, what is refused, and that frames arrive as they were written."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch

from metrics.similarity.video_pairs import VideoFacts, differences, pair_up, probe, read_batches
from tests.metrics.clips import moving, noise, write_lossless


def test_frames_arrive_as_they_were_written(tmp_path: Path) -> None:
    clips = noise(11), noise(11, seed=1)
    files = [write_lossless(tmp_path / f"{name}.mkv", clip) for name, clip in zip("ab", clips, strict=True)]
    (pair,) = pair_up(*files)
    read = list(read_batches(pair, 4))
    assert [len(first) for first, _ in read] == [4, 4, 3]
    for number, clip in enumerate(clips):
        assert torch.equal(torch.cat([batch[number] for batch in read]), clip)
    assert probe(files[0]) == VideoFacts(32, 24, Fraction(24), 11)


def test_folders_are_matched_by_name(tmp_path: Path) -> None:
    names = ["a.mp4", "deep/er/b.mkv", "deep/a.mp4"]
    for folder in ("x", "y"):
        for name in [*names, ".~c.mp4.7.part.mp4", "a.json", "a.reuse.png"]:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    pairs = pair_up(tmp_path / "x", tmp_path / "y")
    assert [pair.name for pair in pairs] == sorted(names)
    assert all(pair.original == tmp_path / "x" / pair.name for pair in pairs)
    assert all(pair.generated == tmp_path / "y" / pair.name for pair in pairs)


def test_what_is_missing_on_either_side_is_named(tmp_path: Path) -> None:
    for folder, names in (("x", "abc"), ("y", "cde")):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x lacks 2: d\.mp4, e\.mp4; .*y lacks 2: a\.mp4, b\.mp4"):
        pair_up(tmp_path / "x", tmp_path / "y")


def test_paths_that_do_not_go_together(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"none\.mp4 does not exist"):
        pair_up(tmp_path / "none.mp4", tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"empty is a folder and .*a\.mp4 a file"):
        pair_up(tmp_path / "a.mp4", tmp_path / "empty")
    with pytest.raises(ValueError, match="empty holds no videos"):
        pair_up(tmp_path / "empty", tmp_path / "empty")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (VideoFacts(64, 32, Fraction(24), 10), []),
        (VideoFacts(64, 32, Fraction(240001, 10000), 10), []),
        (VideoFacts(32, 64, Fraction(24), 10), ["sizes 64x32 and 32x64"]),
        (VideoFacts(64, 32, Fraction(24), 9), ["lengths 10 and 9 frames"]),
        (VideoFacts(64, 32, Fraction(24000, 1001), 10), ["rates 24 and 23.976 frames per second"]),
        (
            VideoFacts(62, 32, Fraction(8), 11),
            ["sizes 64x32 and 62x32", "lengths 10 and 11 frames", "rates 24 and 8 frames per second"],
        ),
    ],
)
def test_differences_are_said_in_numbers(other: VideoFacts, said: list[str]) -> None:
    assert differences(VideoFacts(64, 32, Fraction(24), 10), other) == said


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("not a video", encoding="utf-8")
    with pytest.raises(ValueError, match=r"text\.mp4 cannot be read as a video"):
        probe(text)
    whole = write_lossless(tmp_path / "whole.mp4", moving(8)).read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.mp4 cannot be read as a video"):
        probe(cut)


def test_a_video_that_ends_early_is_refused_while_reading(tmp_path: Path) -> None:
    (pair,) = pair_up(write_lossless(tmp_path / "a.mkv", noise(6)), write_lossless(tmp_path / "b.mkv", noise(5)))
    with pytest.raises(ValueError, match="do not have the same number of frames"):
        list(read_batches(pair, 4))
