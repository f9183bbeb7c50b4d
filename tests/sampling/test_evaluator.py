"""VBench's evaluator as a process: what it is given, what counts as a result, what is said when there is none."""

import os
from pathlib import Path

import pytest

from metrics.vbench import DimensionResult, read_results
from sampling.evaluator import (
    Evaluation,
    EvaluatorError,
    check_counts,
    earlier_evaluation,
    evaluate,
    find_evaluator,
)
from tests.fake_vbench import calls, install

PROMPTS = ["a cat, in the rain", "a dog that's near $HOME"]


def make_videos(folder: Path, indices: int) -> list[Path]:
    """Files by the names of videos, with what else may lie in such a folder."""
    folder.mkdir(parents=True)
    videos = [folder / f"{prompt}-{index}.mp4" for prompt in PROMPTS for index in range(indices)]
    for video in videos:
        video.write_bytes(b"video")
        video.with_suffix(".json").write_text("{}", encoding="utf-8")
    (folder / ".~unfinished.part.mp4").write_bytes(b"")
    return videos


def test_the_evaluator_sees_videos_and_nothing_else(tmp_path: Path) -> None:
    evaluator = install(tmp_path / "bin", prompts=PROMPTS, scores={"scene": 0.25})
    videos = make_videos(tmp_path / "run of today" / "scene", indices=7)
    folder = tmp_path / "the scores" / "scene"
    found = evaluate(evaluator, "scene", videos, folder, static_filter=False, ngpus=3)
    assert (found.dimension, found.given, found.static_filter) == ("scene", 10, False)
    assert read_results([folder / found.result]) == {"scene": DimensionResult(0.25, 10)}
    (call,) = calls(evaluator)
    assert sorted(call["names"]) == sorted(f"{prompt}-{index}.mp4" for prompt in PROMPTS for index in range(5))
    assert call["first"] == str(evaluator.parent)  # where it finds the right python
    assert (call["--ngpus"], call["--dimension"], call["--output_path"]) == ("3", "scene", ".")
    # The real one passes these words on to a shell.
    assert not {" ", "$", "'", '"'} & set(call["--videos_path"])
    assert len(list(videos[0].parent.iterdir())) == 2 * 14 + 1, "the run's folder is as it was"


def test_static_videos_are_picked_first(tmp_path: Path) -> None:
    static = [f"{PROMPTS[0]}-{index}.mp4" for index in range(3, 12)] + [f"{PROMPTS[1]}-9.mp4"]
    evaluator = install(tmp_path / "bin", prompts=PROMPTS, static=static)
    videos = make_videos(tmp_path / "run", indices=12)
    found = evaluate(evaluator, "temporal_flickering", videos, tmp_path / "scores", static_filter=True)
    assert found.given == 5 + 1
    filtering, judging = calls(evaluator)
    assert filtering["command"] == "static_filter" and len(filtering["names"]) == 24
    assert sorted(judging["names"]) == sorted(
        [f"{PROMPTS[0]}-{index}.mp4" for index in range(5)] + [f"{PROMPTS[1]}-0.mp4"]
    )


def test_no_static_video(tmp_path: Path) -> None:
    evaluator = install(tmp_path / "bin", prompts=PROMPTS)
    videos = make_videos(tmp_path / "run", indices=6)
    with pytest.raises(EvaluatorError, match=r"no videos to judge \(none was found static; --no_static_filter"):
        evaluate(evaluator, "temporal_flickering", videos, tmp_path / "scores", static_filter=True)


def test_a_failure_is_seen_though_the_status_is_zero(tmp_path: Path) -> None:
    evaluator = install(tmp_path / "bin", prompts=PROMPTS)
    videos = make_videos(tmp_path / "run", indices=5)
    evaluate(evaluator, "color", videos, tmp_path / "scores", static_filter=False)
    install(tmp_path / "bin", prompts=PROMPTS, broken=["color"])
    with pytest.raises(EvaluatorError, match=r"gave no result for color.*(?s:.*)out of memory"):
        evaluate(evaluator, "color", videos, tmp_path / "scores", static_filter=False)
    assert earlier_evaluation(tmp_path / "scores", "color", videos, False) is None


def test_an_earlier_evaluation_stands_until_a_video_changes(tmp_path: Path) -> None:
    evaluator = install(tmp_path / "bin", prompts=PROMPTS)
    videos = make_videos(tmp_path / "run", indices=5)
    folder = tmp_path / "scores"
    assert earlier_evaluation(folder, "scene", videos, False) is None
    found = evaluate(evaluator, "scene", videos, folder, static_filter=False)
    assert earlier_evaluation(folder, "scene", videos, False) == found
    assert earlier_evaluation(folder, "scene", videos, True) is None
    assert earlier_evaluation(folder, "color", videos, False) is None
    later = (folder / "evaluation.json").stat().st_mtime + 1
    os.utime(videos[3], (later, later))
    assert earlier_evaluation(folder, "scene", videos, False) is None
    os.utime(videos[3], (1, 1))
    (folder / found.result).unlink()
    assert earlier_evaluation(folder, "scene", videos, False) is None


def test_files_of_others_in_the_folder_stay(tmp_path: Path) -> None:
    evaluator = install(tmp_path / "bin", prompts=PROMPTS)
    videos = make_videos(tmp_path / "run", indices=5)
    before = {path.name for path in videos[0].parent.iterdir()}
    evaluate(evaluator, "scene", videos, videos[0].parent, static_filter=False)
    evaluate(evaluator, "scene", videos, videos[0].parent, static_filter=False)
    assert before <= {path.name for path in videos[0].parent.iterdir()}


def test_videos_that_were_not_judged(caplog: pytest.LogCaptureFixture) -> None:
    evaluations = {name: Evaluation(name, "x", 10, False) for name in ("color", "scene")}
    check_counts(evaluations, {"color": 10, "scene": 10})
    assert not caplog.messages
    check_counts(evaluations, {"color": 7, "scene": 10})
    assert caplog.messages == ["color: only 7 of 10 videos were judged: the object was not found in the others"]
    with pytest.raises(EvaluatorError, match="scene: only 9 of 10 videos were judged"):
        check_counts(evaluations, {"color": 10, "scene": 9})
    with pytest.raises(EvaluatorError, match="color: only 0 of 10"):
        check_counts(evaluations, {"color": 0, "scene": 10})


def test_an_evaluator_that_is_not_there_or_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EvaluatorError, match=r"is not at .*nothing.*(?s:.*)uv pip install .*vbench==0\.1\.5"):
        find_evaluator(str(tmp_path / "nothing"))
    with pytest.raises(EvaluatorError, match=r"cannot run from .*no spaces"):
        find_evaluator(str(install(tmp_path / "my tools")))
    evaluator = install(tmp_path / "bin")
    assert find_evaluator(str(evaluator)) == evaluator
    monkeypatch.setattr("sampling.evaluator.REPOSITORY_ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EvaluatorError, match="and not on the PATH"):
        find_evaluator(None)
    monkeypatch.setenv("PATH", str(evaluator.parent))
    assert find_evaluator(None) == evaluator
    default = install(tmp_path / "downloads" / "vbench" / "bin")
    assert find_evaluator(None) == default
