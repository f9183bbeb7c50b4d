"""One video while it is made: chunks come out, prompts go in (docs/long_video.md).

Whoever makes videos, a program, a page or a node, draws chunks from a ``Session``. Between two of them it may set the
prompt of chunks that have not entered the window yet, ask for the end, and read how far the video is; from another
thread it may do so at any time. Wishes are fulfilled before the next chunk enters.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from inference.noise import NoiseSource
from inference.parallel.group import ContextParallel
from inference.reuse import State, moved
from inference.sampler import CleanChunk, PredictionCallback, Sampler, StepCallback
from inference.session.prompts import PromptTrack
from inference.session.report import RunReport
from inference.session.times import PromptChange
from inference.text.cache import CaptionFeatures
from inference.text.cleaning import clean_caption
from inference.video.decode_ahead import decode_ahead

Ending = Literal["finish", "drop"]


@dataclass(frozen=True)
class VideoChunk:
    """A finished piece of the video: ``number`` counts from 0, ``frames`` are uint8 (T, H, W, 3) on the CPU, decoded
    from ``latents`` (1, 16, t, H / 8, W / 8) on the device.
    """

    number: int
    frames: Tensor
    latents: Tensor


@dataclass(frozen=True)
class Progress:
    """How far a video is. ``chunks``, ``steps``: of the whole video, None where it has no end. ``open``: the first
    chunk whose prompt can still be set. ``computed``, ``reused``: chunk-forwards, what the video has cost. ``seconds``:
    by stage.
    """

    chunks_done: int
    chunks: int | None
    steps_done: int
    steps: int | None
    open: int
    computed: int
    reused: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class _Orders:
    """What all ranks do before the next chunk enters: prompts with their features, and whether to end."""

    changes: tuple[tuple[PromptChange, CaptionFeatures], ...]
    end: Ending | None


class Session:
    """Iterating makes the video; once. ``MagiPipeline.session`` builds it.

    Args:
        sampler: of this video alone, as yet without it.
        prompts: captions, not encoded yet.
        noise: where chunks begin.
        encode_prompt: features of a prompt, on the first rank.
        encode_prefix: latents (1, 16, P, H, W) of what is given, or None.
        decode: (latents, name) to frames; the name is for messages.
        explain: a context in which errors about numbers that are none get their reason.
        overlap: decode a chunk while the next is denoised.
        frames: how many to make at most.
        parallel: the ranks that make the video together: each has a session, and the first one's wishes count.
        report: filled while chunks are drawn.
        on_step: called after every step.
        on_prediction: as for ``Sampler.stage``.
    """

    def __init__(
        self,
        sampler: Sampler,
        prompts: PromptTrack,
        noise: NoiseSource,
        *,
        encode_prompt: Callable[[str], CaptionFeatures],
        encode_prefix: Callable[[], Tensor | None],
        decode: Callable[[Tensor, str], Tensor],
        explain: Callable[[], AbstractContextManager[None]],
        overlap: bool,
        frames: int,
        parallel: ContextParallel,
        report: RunReport,
        on_step: StepCallback | None = None,
        on_prediction: PredictionCallback | None = None,
    ) -> None:
        self.report = report
        self._sampler = sampler
        self._prompts = prompts
        self._noise = noise
        self._encode_prompt = encode_prompt
        self._encode_prefix = encode_prefix
        self._decode = decode
        self._explain = explain
        self._overlap = overlap
        self._left = frames
        self._parallel = parallel
        self._on_step = on_step
        self._on_prediction = on_prediction
        self._begun = False
        self._done = 0
        # Out of the sampler, but not yet with the caller.
        self._waiting: deque[CleanChunk] = deque()
        self._wishes: deque[PromptChange] = deque()
        self._end: Ending | None = None

    def __iter__(self) -> Iterator[VideoChunk]:
        self.begin()
        if self._left == 0:
            return
        with closing(self._decoded()) as parts, self._explain():
            for part in parts:
                self._parallel.check()
                frames = part[: self._left]
                self._left -= len(frames)
                self.report.frames += len(frames)
                done = self._waiting.popleft()
                self._done = done.number + 1
                yield VideoChunk(done.number, frames, done.latents)
                if self._left == 0:
                    break

    def begin(self, state: State | None = None) -> None:
        """Encode what is given: prompts and prefix. Iterating does so where it was not done.

        Args:
            state: what ``state`` returned in a session for the same video; this one goes on behind it.
        """
        if self._begun:
            return
        self._begun = True
        if state is not None:
            self._prompts.plan(state["prompts"])
        with self.report.timed("text"):
            self._prompts.encode_all()
        prefix = self._encode_prefix()
        with self.report.timed("denoise"):
            self._sampler.begin(self._noise, self._prompts, prefix)
        if state is not None:
            self._restore(state)

    def set_prompt(self, prompt: str, chunk: int | None = None) -> None:
        """From ``chunk`` on, by default from the next one that enters, ``prompt`` rules.

        Changes that were planned for later chunks stand. Of several ranks the first one's count.

        Raises:
            ValueError: the prompt is no text, or the chunk has entered already, or the video has no such chunk.
        """
        clean_caption(prompt)
        first, chunks = self.progress.open, self.progress.chunks
        chunk = first if chunk is None else chunk
        if chunk < first:
            raise ValueError(f"chunk {chunk} has begun with its prompt; the first that has not is chunk {first}")
        if chunks is not None and chunk >= chunks:
            raise ValueError(f"chunk {chunk} does not exist in a video of {chunks} chunks")
        self._wishes.append(PromptChange(chunk, prompt))

    def end(self, ending: Ending = "finish") -> None:
        """Let no further chunk enter. The chunks under way are finished, or dropped with "drop"; those that are done
        come out in any case.
        """
        self._end = ending

    @property
    def progress(self) -> Progress:
        sampler, record = self._sampler, self._sampler.record
        if not self._begun:
            return Progress(0, None, 0, None, 0, 0, 0, dict(self.report.seconds))
        schedule, endless = sampler.schedule, sampler.endless
        return Progress(
            chunks_done=self._done,
            chunks=None if endless else schedule.chunk_num - schedule.offset,
            steps_done=sampler.number,
            steps=None if endless else schedule.total_steps,
            open=sampler.entered - schedule.offset,
            computed=record.computed,
            reused=record.reused,
            seconds=dict(self.report.seconds),
        )

    def state(self) -> State:
        """All that is needed to go on behind the chunk that was drawn last, in another process too: plain values, and
        tensors on the CPU. Of several ranks each has its own.
        """
        waiting = [(chunk.number, chunk.latents.cpu()) for chunk in self._waiting]
        own = {"left": self._left, "done": self._done, "waiting": waiting, "end": self._end}
        parts = {"sampler": self._sampler.state(), "prompts": self._prompts.state(), "report": self.report.state()}
        return own | parts

    def _restore(self, state: State) -> None:
        self._sampler.restore(state["sampler"])
        self._prompts.restore(state["prompts"])
        self.report.restore(state["report"])
        self._left, self._done, self._end = state["left"], state["done"], state["end"]
        device = self._sampler.cache.geometry.device
        self._waiting = deque(CleanChunk(number, moved(latents, device)) for number, latents in state["waiting"])
        self.report.resumed.append(self._done - 1)
        self._publish()

    def _decoded(self) -> Iterator[Tensor]:
        """Frames of every chunk, in order."""
        numbers = itertools.count(self._done)

        def decode(latents: Tensor) -> Tensor:
            with self.report.timed("decode"):
                return self._decode(latents, f"frames of chunk {next(numbers)}")

        chunks = self._clean_latents()
        if self._overlap:
            yield from decode_ahead(chunks, decode, self._sampler.cache.geometry.device)
        else:
            yield from map(decode, chunks)

    def _clean_latents(self) -> Iterator[Tensor]:
        """The latents of every clean chunk; the report is kept up to date."""
        for chunk in tuple(self._waiting):
            yield chunk.latents
        sampler = self._sampler
        while not sampler.done:
            self._fulfil()
            if self._end == "drop" or sampler.done:
                return
            with self.report.timed("denoise"):
                if sampler.entered < sampler.schedule.chunk_num:
                    self._prompts.enter(sampler.entered)
                chunk = sampler.stage(self._on_step, self._on_prediction)
            self._publish()
            if chunk is not None:
                self._prompts.leave_before(chunk.number + sampler.schedule.offset)
                self._waiting.append(chunk)
                yield chunk.latents

    def _publish(self) -> None:
        self.report.record, self.report.kv_cache_bytes = self._sampler.record, self._sampler.cache.bytes
        self.report.prompts = self._prompts.ruled

    def _fulfil(self) -> None:
        """What was wished for, on every rank."""
        orders = self._parallel.from_first(self._orders)
        for change, features in orders.changes:
            self._prompts.add(change, features)
        self._end = orders.end
        if self._end == "finish" and self._sampler.entered < self._sampler.schedule.chunk_num:
            self._sampler.end_early()

    def _orders(self) -> _Orders:
        first, changes = self._sampler.entered - self._sampler.schedule.offset, []
        while self._wishes:
            wish = self._wishes.popleft()
            # One that another thread had set for a chunk that has entered since.
            late = PromptChange(max(wish.chunk, first), wish.prompt)
            with self.report.timed("text"):
                changes.append((late, self._encode_prompt(wish.prompt)))
        return _Orders(tuple(changes), self._end)
