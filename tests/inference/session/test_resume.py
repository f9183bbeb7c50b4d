"""A video that is gone on with behind any of its chunks is the video that was never interrupted."""

import io
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from flowcache.config import FlowCacheConfig
from flowcache.kv_cache import CompressedKVCache
from harness.methods import MultistepSettings, TeaCacheSettings, make_reuse
from inference.config import load_config
from inference.pipeline import MagiPipeline, Sample
from inference.session.session import Session
from inference.session.times import PromptChange
from multistep.config import Solver

SOLVER_ROWS = ((0.3,), (0.1, 0.3), (0.0, -0.1, 0.4))
FLOWCACHE = {"rel_l1_thresh": 0.6, "warmup_steps": 2}
SETTINGS = {
    "none": None,
    "flowcache": FlowCacheConfig(**FLOWCACHE, reuse_form="linear", correct=True),
    "compressed": FlowCacheConfig(**FLOWCACHE, compress_kv_cache=True, merge_dropped=True),
    "by_importance": FlowCacheConfig(**FLOWCACHE, compress_kv_cache=True, keep_rule="importance"),
    "teacache": TeaCacheSettings(rel_l1_thresh=0.9, warmup_steps=2),
    "multistep": MultistepSettings(computed_share=0.5),
    "solver": MultistepSettings(
        pattern=(0, 2, 5),
        pattern_steps=8,
        solver=Solver(levels=(0.0, 0.3, 0.7), first=SOLVER_ROWS, later=SOLVER_ROWS),
    ),
}
SAMPLE = Sample("a cat on a mat", later=(PromptChange(2, "the dog runs"), PromptChange(6, "the sun")))


def options(method: str) -> dict[str, Any]:
    settings = SETTINGS[method]
    if settings is None:
        return {}
    caches = {"make_cache": partial(CompressedKVCache, config=settings)} if settings.compress_kv_cache else {}
    return {"reuse": make_reuse(settings), **caches}


def load(checkpoint: Path, name: str, **changes: Any) -> MagiPipeline:
    config = load_config(checkpoint / f"{name}.json").with_overrides(**{"num_frames": 192, **changes})
    return MagiPipeline.load(config, torch.device("cpu"))


def as_from_disk(state: Any) -> Any:
    """Through a file that is read without running anything in it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumes_everywhere(whole: Session, again: Any, behind: tuple[int, ...]) -> None:
    """``again`` gives a new session for the same video."""
    frames, states = [], {}
    for chunk in whole:
        frames.append(chunk.frames)
        if chunk.number in behind:
            states[chunk.number] = as_from_disk(whole.state())
    assert states.keys() == set(behind)
    for done, state in states.items():
        session = again()
        session.begin(state)
        rest = list(session)
        assert [chunk.number for chunk in rest] == list(range(done + 1, len(frames)))
        assert all(torch.equal(chunk.frames, frames[chunk.number]) for chunk in rest)
        # What describes the run is that of the whole one.
        record, expected = session.report.record, whole.report.record
        assert record.summary() == expected.summary() and record.reuse_map() == expected.reuse_map()
        assert record.forward_counts() == expected.forward_counts()
        assert session.report.frames == whole.report.frames and session.report.prompts == whole.report.prompts
        assert session.report.resumed == [done]


@pytest.mark.parametrize("method", SETTINGS)
@pytest.mark.parametrize("name", ["distill", "base"])
def test_with_every_method(checkpoint: Path, name: str, method: str) -> None:
    pipeline = load(checkpoint, name)

    def session() -> Session:
        return pipeline.session(SAMPLE, **options(method))

    resumes_everywhere(session(), session, (0, 3, 5, 7))


@pytest.mark.parametrize(
    "changes",
    [
        {"kv_offload": True},
        {"overlap_decode": True},
        {"noise2clean_kvrange": []},
        {"num_frames": 190},
    ],
    ids=str,
)
def test_with_other_settings(checkpoint: Path, changes: dict[str, Any]) -> None:
    pipeline = load(checkpoint, "distill", **changes)
    resumes_everywhere(pipeline.session(SAMPLE), lambda: pipeline.session(SAMPLE), (1, 4))


@pytest.mark.parametrize("given", [1, 40])
def test_with_given_frames(checkpoint: Path, given: int) -> None:
    pipeline = load(checkpoint, "base")
    frames = torch.randint(0, 255, (given, 32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    sample = Sample("a cat on a mat", frames)
    for method in ("none", "compressed"):
        resumes_everywhere(
            pipeline.session(sample, **options(method)),
            lambda method=method: pipeline.session(sample, **options(method)),
            (0, 3),
        )


def test_of_a_run_that_was_resumed_before_and_is_ended_early(checkpoint: Path) -> None:
    pipeline = load(checkpoint, "distill", num_frames="endless")

    def draw(session: Session, count: int) -> tuple[list[torch.Tensor], Any]:
        found = [next(chunks).frames for chunks in [iter(session)] for _ in range(count)]
        return found, as_from_disk(session.state())

    def ended(session: Session) -> list[torch.Tensor]:
        session.end()
        return [chunk.frames for chunk in session]

    once, _ = draw(undisturbed := pipeline.session(SAMPLE), 7)
    rest = ended(undisturbed)
    state, found = None, []
    for count in (2, 1, 4):
        session = pipeline.session(SAMPLE)
        session.begin(state)
        more, state = draw(session, count)
        found += more
    last = pipeline.session(SAMPLE)
    last.begin(state)
    found += ended(last)
    assert len(found) == len(once) + len(rest) and last.report.resumed == [1, 2, 6]
    assert all(torch.equal(a, b) for a, b in zip(found, [*once, *rest], strict=True))


def test_prompts_that_were_set_on_the_way_are_kept(checkpoint: Path) -> None:
    pipeline = load(checkpoint, "distill")
    whole = pipeline.session(Sample("a cat on a mat"))
    frames, state = [], None
    for chunk in whole:
        frames.append(chunk.frames)
        if chunk.number == 1:
            whole.set_prompt("the dog runs")
            whole.set_prompt("the sun", 7)
        if chunk.number == 3:
            state = as_from_disk(whole.state())
    session = pipeline.session(Sample("a cat on a mat"))
    session.begin(state)
    assert all(torch.equal(chunk.frames, frames[chunk.number]) for chunk in session)
    assert session.report.prompts == whole.report.prompts and len(whole.report.prompts) == 3
