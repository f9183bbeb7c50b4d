"""VBench's evaluator as a process: what it is given, what counts as a result, what is said when there is none."""

import os
from pathlib import Path

import pytest

from metrics.vbench import DimensionResult, read_results
from sampling.evaluator.process import (
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


def test_vbench_long_judges_clips(tmp_path: Path) -> None:
    evaluator = install(tmp_path / "bin", scores={"scene": 0.25}, static=[f"{PROMPTS[0]}-6.mp4"], broken=["color"])
    videos = make_videos(tmp_path / "run of today", indices=7)
    found = evaluate(evaluator, "scene", videos, tmp_path / "scene", static_filter=False, long=True)
    assert (found.given, found.long) == (10, True)
    assert read_results([tmp_path / "scene" / found.result]) == {"scene": DimensionResult(0.25, 10)}
    again = [tmp_path / "scene", "scene", videos, False]
    assert earlier_evaluation(*again, True) == found and earlier_evaluation(*again) is None
    evaluate(evaluator, "subject_consistency", videos, tmp_path / "subject", static_filter=False, long=True)
    results = read_results((tmp_path / "subject").glob("*_eval_results.json"))
    assert results["subject_consistency"].judged == 10
    flickering = evaluate(evaluator, "temporal_flickering", videos, tmp_path / "static", static_filter=True, long=True)
    results = read_results([tmp_path / "static" / flickering.result])
    assert flickering.given == results["temporal_flickering"].judged == 1
    given = [(call["static_filter"], len(call["names"])) for call in calls(evaluator)]
    assert given == [("0", 10), ("0", 10), ("1", 14)]
    with pytest.raises(EvaluatorError, match="no result for color"):
        evaluate(evaluator, "color", videos, tmp_path / "color", static_filter=False, long=True)
    (evaluator.parent / "python").unlink()
    with pytest.raises(EvaluatorError, match=r"VBench-Long runs by .*bin/python is not there"):
        evaluate(evaluator, "scene", videos, tmp_path / "scene", static_filter=False, long=True)


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


MISSING_WEIGHTS = """\
Traceback (most recent call last):
  File "/env/vbench/cli/static_filter.py", line 37, in load_model
    self.model.load_state_dict(torch.load(self.args.model))
FileNotFoundError: [Errno 2] No such file or directory: '/home/user/.cache/vbench/raft_model/models/raft-things.pth'
"""


def test_a_static_filter_that_crashed_is_not_said_to_have_found_none(tmp_path: Path) -> None:
    evaluator = install(tmp_path / "bin", prompts=PROMPTS, crash=MISSING_WEIGHTS)
    videos = make_videos(tmp_path / "run", indices=6)
    with pytest.raises(EvaluatorError) as error:
        evaluate(evaluator, "temporal_flickering", videos, tmp_path / "scores", static_filter=True)
    message = str(error.value)
    assert "the static filter failed" in message and "none was found static" not in message
    assert "FileNotFoundError: [Errno 2] No such file or directory: '/home/user/.cache/vbench/raft_model" in message
    assert "dynamic_degree" in message, "which fetches the weights"
    assert len(calls(evaluator)) == 1


# As torchrun 2.5 leaves it: the error of the process, then its own, which says nothing of the cause.
TORCHRUN = """\
start evaluation
[rank0]: Traceback (most recent call last):
[rank0]:   File "/env/vbench/launch/evaluate.py", line 141, in <module>
[rank0]:     main()
[rank0]:   File "/env/vbench/motion_smoothness.py", line 88, in load_model
[rank0]:     ckpt = torch.load(ckpt_path, map_location="cpu")
[rank0]: _pickle.UnpicklingError: Weights only load failed. This file can still be loaded
E1126 10:00:00.000000 123 torch/distributed/elastic/multiprocessing/api.py:869] failed (exitcode: 1) local_rank: 0
Traceback (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main
  File "/env/torch/distributed/run.py", line 923, in <module>
    main()
  File "/env/torch/distributed/launcher/api.py", line 269, in launch_agent
    raise ChildFailedError(
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
/env/vbench/cli/../launch/evaluate.py FAILED
------------------------------------------------------------
Failures:
  <NO_OTHER_FAILURES>
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-26_10:00:00
  host      : node0
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 124)
  error_file: <N/A>
  traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
============================================================
"""


def failure(tmp_path: Path, error: str) -> str:
    evaluator = install(tmp_path / "bin", prompts=PROMPTS, broken=["color"], error=error)
    with pytest.raises(EvaluatorError) as found:
        evaluate(evaluator, "color", make_videos(tmp_path / "run", 5), tmp_path / "scores", static_filter=False)
    return str(found.value)


def test_the_cause_of_a_failure_is_shown_not_the_summary_of_torchrun(tmp_path: Path) -> None:
    message = failure(tmp_path, TORCHRUN)
    assert "_pickle.UnpicklingError: Weights only load failed. This file can still be loaded" in message
    assert 'motion_smoothness.py", line 88' in message and "evaluator.log" in message
    assert "ChildFailedError" not in message and "Root Cause" not in message and "GPU" not in message


def test_an_error_before_the_launcher_started(tmp_path: Path) -> None:
    text = (
        'Traceback (most recent call last):\n  File "/env/bin/vbench", line 5, in <module>\n    import pkg_resources\n'
    )
    message = failure(tmp_path, text + "ModuleNotFoundError: No module named 'pkg_resources'\n")
    assert message.rstrip().endswith("ModuleNotFoundError: No module named 'pkg_resources'")


@pytest.mark.parametrize(
    "cause",
    [
        "ValueError: ProcessGroupNCCL is only supported with GPUs, no GPUs found!",
        "RuntimeError: Found no NVIDIA driver on your system.",
        "RuntimeError: Distributed package doesn't have NCCL built in",
        "AssertionError: Torch not compiled with CUDA enabled",
    ],
)
def test_without_a_gpu_what_to_do_is_said(tmp_path: Path, cause: str) -> None:
    text = f'Traceback (most recent call last):\n  File "/env/vbench/distributed.py", line 36, in dist_init\n{cause}\n'
    message = failure(tmp_path, TORCHRUN.replace("start evaluation", text).replace("UnpicklingError", "GoneError"))
    assert "GPU" not in message.replace(cause, ""), "an earlier error is not the cause"
    message = failure(tmp_path / "alone", text)
    assert cause in message and "needs an NVIDIA GPU" in message and "sampling.yaml" in message


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
    with pytest.raises(EvaluatorError, match=r"is not at .*nothing.*bash scripts/score_vbench.sh --setup"):
        find_evaluator(str(tmp_path / "nothing"))
    with pytest.raises(EvaluatorError, match=r"cannot run from .*no spaces"):
        find_evaluator(str(install(tmp_path / "my tools")))
    evaluator = install(tmp_path / "bin")
    assert find_evaluator(str(evaluator)) == evaluator
    monkeypatch.setattr("sampling.evaluator.process.REPOSITORY_ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EvaluatorError, match="and not on the PATH"):
        find_evaluator(None)
    monkeypatch.setenv("PATH", str(evaluator.parent))
    assert find_evaluator(None) == evaluator
    default = install(tmp_path / "downloads" / "vbench" / "bin")
    assert find_evaluator(None) == default
