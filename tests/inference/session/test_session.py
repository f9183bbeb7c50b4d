"""A video while it is made: prompts that change, ends that come early or never, and beginnings that are alike."""

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowcache.config import FlowCacheConfig
from flowcache.kv_cache import CompressedKVCache
from harness.methods import make_reuse
from inference.config import load_config
from inference.noise import DrawnNoise, draw_noise
from inference.pipeline import MagiPipeline, RunReport, Sample
from inference.session.session import Session
from inference.session.times import PromptChange

CAT, DOG, SUN = "a cat on a mat", "the dog runs", "the sun"
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "reuse": {"rel_l1_thresh": 0.6, "warmup_steps": 2},
    "compressed": {"rel_l1_thresh": 0.6, "warmup_steps": 2, "compress_kv_cache": True, "merge_dropped": True},
}


def options(method: str) -> dict[str, Any]:
    settings = FlowCacheConfig(**METHODS[method])
    if method == "none":
        return {}
    caches = {"make_cache": partial(CompressedKVCache, config=settings)} if settings.compress_kv_cache else {}
    return {"reuse": make_reuse(settings), **caches}


@pytest.fixture(scope="module", params=["distill", "base"])
def pipeline(request: pytest.FixtureRequest, checkpoint: Path) -> MagiPipeline:
    config = load_config(checkpoint / f"{request.param}.json").with_overrides(num_frames=240)
    return MagiPipeline.load(config, torch.device("cpu"))


def longer(pipeline: MagiPipeline, frames: Any, **changes: Any) -> MagiPipeline:
    """The same models for videos of another length."""
    config = pipeline.config.with_overrides(num_frames=frames, **changes)
    return MagiPipeline(config, pipeline.dit, pipeline.vae, pipeline.t5, pipeline.tokens, pipeline.device)


def chunks_of(pipeline: MagiPipeline, sample: Sample, method: str = "none") -> list[Tensor]:
    return list(pipeline.frames(sample, **options(method)))


def same(first: list[Tensor], second: list[Tensor]) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(first, second, strict=False)]


def prefix(count: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 255, (count, 32, 48, 3), dtype=torch.uint8, generator=generator) if count else None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("given", [0, 24, 40])
def test_a_prompt_takes_over_where_it_is_set_and_not_before(pipeline: MagiPipeline, method: str, given: int) -> None:
    cats = chunks_of(pipeline, Sample(CAT, prefix(given)), method)
    report = RunReport()
    changed = Sample(CAT, prefix(given), later=(PromptChange(3, DOG), PromptChange(5, SUN)))
    found = list(pipeline.frames(changed, report=report, **options(method)))
    assert report.prompts == [PromptChange(0, CAT), PromptChange(3, DOG), PromptChange(5, SUN)]
    later = chunks_of(pipeline, Sample(CAT, prefix(given), later=(PromptChange(3, DOG),)), method)
    for at, other in ((3, cats), (5, later)):
        alike = same(other, found)
        # Which tokens a compression keeps depends on the queries of all chunks in the window, of the new one too.
        sure = at - 3 if method == "compressed" else at
        assert alike[:sure] == [True] * sure and alike[at:] == [False] * (10 - at)


def test_changes_to_the_same_prompt_change_nothing(pipeline: MagiPipeline) -> None:
    report = RunReport()
    again = Sample(CAT, later=(PromptChange(2, CAT), PromptChange(7, CAT)))
    found = list(pipeline.frames(again, report=report))
    assert all(same(chunks_of(pipeline, Sample(CAT)), found)) and report.prompts == [PromptChange(0, CAT)]


def test_a_chunk_has_entered_with_its_first_step(pipeline: MagiPipeline) -> None:
    """Whoever sets a prompt after a step must not be told of a chunk that is under way."""
    seen = []
    session = pipeline.session(
        Sample(CAT), on_step=lambda step: seen.append((max(step.computed), session.progress.open))
    )
    for _ in session:
        pass
    assert all(newest < free for newest, free in seen) and seen[0] == (0, 1)


@pytest.mark.parametrize("method", ["none", "compressed"])
def test_a_prompt_set_between_two_chunks_is_one_that_was_planned(pipeline: MagiPipeline, method: str) -> None:
    planned = chunks_of(pipeline, Sample(CAT, later=(PromptChange(4, DOG), PromptChange(6, SUN))), method)
    session = pipeline.session(Sample(CAT, later=(PromptChange(6, SUN),)), **options(method))
    found = []
    for chunk in session:
        found.append(chunk.frames)
        if chunk.number == 0:
            assert session.progress.open == 4  # the window of four has entered
            with pytest.raises(
                ValueError, match="chunk 3 has begun with its prompt; the first that has not is chunk 4"
            ):
                session.set_prompt(DOG, 3)
            with pytest.raises(ValueError, match="chunk 10 does not exist in a video of 10 chunks"):
                session.set_prompt(DOG, 10)
            session.set_prompt(DOG)
    assert all(same(planned, found)) and len(found) == 10


def test_every_prompt_is_encoded_once(pipeline: MagiPipeline) -> None:
    class Counting:
        residency, asked = None, []

        def encode(self, prompt: str) -> Any:
            self.asked.append(prompt)
            return pipeline.t5.encode(prompt)

    own = longer(pipeline, 240)
    own.t5 = Counting()
    later = tuple(PromptChange(chunk, prompt) for chunk, prompt in enumerate([DOG, CAT, DOG, SUN, CAT], start=1))
    session = own.session(Sample(CAT, later=later))
    session.begin()
    assert sorted(own.t5.asked) == sorted([CAT, DOG, SUN])  # ahead
    assert len(list(session)) == 10 and len(own.t5.asked) == 3


@pytest.mark.parametrize("method", METHODS)
def test_ending_early_finishes_the_chunks_under_way_or_drops_them(pipeline: MagiPipeline, method: str) -> None:
    whole = chunks_of(longer(pipeline, 288), Sample(CAT), method)
    for frames in (288, "endless"):
        for ending, count in (("finish", 6), ("drop", 3)):
            session = longer(pipeline, frames).session(Sample(CAT), **options(method))
            found = []
            for chunk in session:
                found.append(chunk.frames)
                if chunk.number == 2:
                    session.end(ending)
            assert len(found) == count and session.report.frames == 24 * count
            # What had come out is what it was; those that were finished were so in a window that emptied.
            assert all(same(whole, found)[:3])
            progress = session.progress
            assert progress.chunks_done == count and progress.chunks == (6 if ending == "finish" else progress.chunks)
            assert session.report.record.chunk_num >= count


def test_an_end_before_the_beginning_makes_nothing(pipeline: MagiPipeline) -> None:
    for ending in ("finish", "drop"):
        session = pipeline.session(Sample(CAT))
        session.end(ending)
        assert list(session) == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("given", [0, 1, 24])
def test_a_long_video_begins_as_a_short_one(pipeline: MagiPipeline, method: str, given: int) -> None:
    """Up to the chunk from which a duration token tells that the end is near; without those, up to the last window."""
    for tokens, alike in ((True, 12 - 7), (False, 12 - 4 + 1)):
        sample = Sample(CAT, prefix(given))
        short = chunks_of(longer(pipeline, 288, pad_duration=tokens), sample, method)
        assert len(short) == 12
        endless = longer(pipeline, "endless", pad_duration=tokens).session(sample, **options(method))
        beginning = [chunk.frames for chunk in itertools.islice(endless, 12)]
        # As above: chunks under way with one that differs are compressed in another way.
        alike -= 3 if method == "compressed" else 0
        assert same(short, beginning)[:alike] == [True] * alike
        if tokens:
            assert not same(short, beginning)[12 - 7]


def test_an_endless_video_keeps_no_more_than_its_window(pipeline: MagiPipeline) -> None:
    session = longer(pipeline, "endless", num_steps=4).session(Sample(CAT))
    sizes = []
    for chunk in session:
        if chunk.number <= 30:
            session.set_prompt(f"{DOG} {'so ' * chunk.number}")
        sizes.append((session.report.kv_cache_bytes, sum(part.nbytes for part in session._sampler.held())))
        if chunk.number == 30:
            session.end()
    assert len(set(sizes[1:28])) == 1
    assert len(session._prompts._captions) <= 5 and len(session._prompts._features) <= 5
    assert session.progress.chunks_done == 34 and len(session.report.prompts) == 31


def test_the_whole_history_of_an_endless_video_is_refused(pipeline: MagiPipeline) -> None:
    with pytest.raises(ValueError, match=r"endless video.*set a key window such as 5,4,3,2, or compress the KV cache"):
        longer(pipeline, "endless", noise2clean_kvrange=[]).session(Sample(CAT)).begin()
    compressed = longer(pipeline, "endless", noise2clean_kvrange=[]).session(Sample(CAT), **options("compressed"))
    assert len(list(itertools.islice(compressed, 9))) == 9


def test_wishes_of_another_thread_come_with_the_next_chunk_that_enters(pipeline: MagiPipeline) -> None:
    session: Session = pipeline.session(Sample(CAT))
    drawn = iter(session)
    next(drawn)
    session._wishes.append(PromptChange(1, DOG))  # as if chunk 1 had entered after it was checked
    list(drawn)
    assert session.report.prompts == [PromptChange(0, CAT), PromptChange(4, DOG)]


def test_noise_drawn_by_the_chunk_is_the_noise_drawn_at_once() -> None:
    shape, cpu = (16, 6, 4, 6), torch.device("cpu")
    whole, drawn = draw_noise(7, 5, shape), DrawnNoise(7, shape, cpu)
    assert torch.equal(drawn.chunk(0), whole[0, :, :6]) and torch.equal(drawn.chunk(3), whole[0, :, 18:24])
    other = DrawnNoise(7, shape, cpu)
    other.restore(drawn.state())
    assert torch.equal(drawn.chunk(4), whole[0, :, 24:]) and torch.equal(other.chunk(4), whole[0, :, 24:])
    with pytest.raises(ValueError, match="the noise of chunk 2 was drawn before; the next is that of chunk 5"):
        drawn.chunk(2)
