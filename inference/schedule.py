"""Which chunk stands at which noise level at every step: pure Python and NumPy scalars, no torch.

MAGI-1 denoises a sliding window of chunks, each at its own noise level (MAGI-1 report, section 2; docs/sampler.md,
"The sliding window"). This module turns the handful of numbers of a run into a list of frozen ``Step`` objects.
Whoever holds a ``Step`` knows everything about that step except the tensors: the sampler, the reuse policies and the
KV caches all read the same object.

Terms: a *stage* is the ``num_steps // window_size`` steps between two moves of the window; a chunk's *index* is the
number of steps that it has already done (0 to ``num_steps - 1``).
"""

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np

# Used by the prefix extraction when neither key window is configured (docs/sampler.md, "Which keys a chunk sees").
DEFAULT_PREFIX_KEY_WINDOW = 8
# More than any video has that ends: 30 years of it.
MOST_CHUNKS = 10**9


@dataclass(frozen=True)
class ChunkStep:
    """One chunk at one step. ``t`` is its noise level (0 noise, 1 clean), ``dt`` the Euler step, ``key_start`` the
    first visible chunk.
    """

    chunk: int
    index: int
    t: float
    dt: float
    key_start: int


@dataclass(frozen=True)
class Step:
    """One step of the window. ``number`` counts all steps of the video, ``k`` those of the stage."""

    number: int
    stage: int
    k: int
    window: tuple[ChunkStep, ...]
    clean: int | None  # chunk to be encoded once more at t = clean_t in front of this step's window
    clean_key_start: int
    finished: int | None  # chunk that is clean after this step
    is_first: bool
    is_last: bool

    @cached_property
    def chunks(self) -> tuple[int, ...]:
        return tuple(entry.chunk for entry in self.window)

    def of(self, chunk: int) -> ChunkStep:
        """The entry of ``chunk``; KeyError where it is not in the window."""
        for entry in self.window:
            if entry.chunk == chunk:
                return entry
        raise KeyError(f"chunk {chunk} is not in the window {self.chunks} of step {self.number}")


def step_intervals(num_steps: int, shortcut_mode: str) -> tuple[int, ...]:
    """The step-interval schedule: ones, or a repeated triple where ``num_steps`` is a multiple of 3."""
    if num_steps % 3:
        return (1,) * num_steps
    triple = {"8,16,16": (2, 1, 1), "16,16,8": (1, 1, 2)}[shortcut_mode]
    return triple * (num_steps // 3)


def time_grid(num_steps: int, shortcut_mode: str) -> np.ndarray:
    """Noise levels ``(num_steps + 1,)``, float32, from 0 (noise) to 1 (clean), by the "sd3" transform with shift 3."""
    one = np.float32(1)
    if num_steps == 12:
        base = _linspace(4) / np.float32(4)
        triple = base[[0, 2, 3]] if shortcut_mode == "8,16,16" else base[[0, 1, 2]]
        u = np.concatenate([triple + np.float32(quarter / 4) for quarter in range(5)])[: num_steps + 1]
    else:
        u = _linspace(num_steps)
    u = u * u
    shift = np.float32(1 / 3)
    # In this order and in float32: at three quarters of the steps the value must be 0.3000000119, which counts as
    # past 0.3.
    return (shift * u / (one + np.float32(1 / 3 - 1) * u)).astype(np.float32)


def _linspace(steps: int) -> np.ndarray:
    """``linspace(0, 1, steps + 1)`` in float32 with torch's rounding: each half is counted from its own end."""
    width = np.float32(1) / np.float32(steps)
    i = np.arange(steps + 1, dtype=np.float32)
    lower = i < (steps + 1) // 2
    return np.where(lower, width * i, np.float32(1) - width * (np.float32(steps) - i)).astype(np.float32)


@dataclass(frozen=True)
class Schedule:
    """All steps of one video.

    Args:
        chunk_num: chunks of the video, the given ones included.
        offset: chunks that are wholly given (prefix); output starts with chunk ``offset``.
        num_steps: steps of every chunk.
        window_size: chunks denoised together; divides ``num_steps``.
        noise2clean_kvrange: key window in chunks by noise level; empty means the whole history.
        clean_chunk_kvrange: key window of clean chunks; -1 means the last entry of ``noise2clean_kvrange``.
        shortcut_mode: "8,16,16" or "16,16,8".
    """

    chunk_num: int
    offset: int
    num_steps: int
    window_size: int
    noise2clean_kvrange: tuple[int, ...] = ()
    clean_chunk_kvrange: int = 1
    shortcut_mode: str = "8,16,16"

    def __post_init__(self) -> None:
        if self.num_steps % self.window_size:
            raise ValueError(f"num_steps {self.num_steps} is not divisible by window_size {self.window_size}")
        if self.noise2clean_kvrange and self.num_steps % len(self.noise2clean_kvrange):
            raise ValueError(
                f"num_steps {self.num_steps} is not divisible by the {len(self.noise2clean_kvrange)} entries of "
                f"noise2clean_kvrange {list(self.noise2clean_kvrange)}"
            )
        if not 0 <= self.offset < self.chunk_num:
            raise ValueError(
                f"the prefix fills {self.offset} of {self.chunk_num} chunks, so none is left to make; raise num_frames"
            )

    @property
    def steps_per_stage(self) -> int:
        return self.num_steps // self.window_size

    @property
    def stages(self) -> int:
        return self.chunk_num - self.offset + self.window_size - 1

    @property
    def total_steps(self) -> int:
        return self.stages * self.steps_per_stage

    @cached_property
    def times(self) -> np.ndarray:
        return time_grid(self.num_steps, self.shortcut_mode)

    @cached_property
    def intervals(self) -> tuple[int, ...]:
        return step_intervals(self.num_steps, self.shortcut_mode)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """All steps at once; a video of hours has too many for that, see ``step``."""
        return tuple(self.step(number) for number in range(self.total_steps))

    def step(self, number: int) -> Step:
        """The step of that number; IndexError where the video has none."""
        if not 0 <= number < self.total_steps:
            raise IndexError(f"step {number} of {self.total_steps}")
        return self._step(*divmod(number, self.steps_per_stage))

    def step_scalar(self, k: int) -> float:
        """The step-size scalar that a distilled model is told at step ``k`` of a stage (k = 0 for the prefix
        extraction).
        """
        if self.num_steps == 12:
            return 4 / self.intervals[k] * 2
        return self.num_steps / 4 * 2

    def prefix_key_start(self, chunk: int) -> int:
        """First chunk that a given chunk sees when the prefix is extracted."""
        if self.clean_chunk_kvrange != -1:
            window = self.clean_chunk_kvrange
        else:
            window = self.noise2clean_kvrange[-1] if self.noise2clean_kvrange else DEFAULT_PREFIX_KEY_WINDOW
        return max(0, chunk + 1 - window)

    def clean_key_start(self, chunk: int) -> int:
        """First chunk that a finished chunk sees when it is encoded once more, clean."""
        if not self.noise2clean_kvrange:
            return 0
        window = self.clean_chunk_kvrange if self.clean_chunk_kvrange != -1 else self.noise2clean_kvrange[-1]
        return max(0, chunk + 1 - window)

    def noisy_key_start(self, chunk: int, index: int) -> int:
        """First chunk that ``chunk`` sees after ``index`` of its own steps."""
        if not self.noise2clean_kvrange:
            return 0
        window = self.noise2clean_kvrange[index // (self.num_steps // len(self.noise2clean_kvrange))]
        return max(0, chunk + 1 - window)

    def first_reached(self, step: Step) -> int:
        """The earliest chunk that any key window of ``step`` and the steps after it reaches."""
        newest = step.window[-1].chunk
        reached = [max(0, entry.chunk + 1 - self._widest_from[entry.index]) for entry in step.window]
        if newest + 1 < self.chunk_num:
            # Those that enter after it reach no further back.
            reached.append(max(0, newest + 2 - self._widest_from[0]))
        if step.clean is not None:
            reached.append(step.clean_key_start)
        elif step.window[0].chunk < self.chunk_num - 1:
            reached.append(self.clean_key_start(step.window[0].chunk))
        return min(reached)

    @cached_property
    def chunks_reached(self) -> int:
        """The most chunks from the earliest that can still be seen to the newest, at any step; the given ones and the
        first that is made at least, as those are encoded together before it enters.
        """
        if not self.noise2clean_kvrange:
            if self.chunk_num > MOST_CHUNKS:
                raise ValueError(
                    "an endless video has no whole history to look at (noise2clean_kvrange []): set a key window such "
                    "as 5,4,3,2, or compress the KV cache"
                )
            return self.chunk_num
        # The window is full, and no reach ends at the beginning of the video any more, after so many stages.
        stages = min(self.stages, self.window_size + max(self._widest_from[0], self.window_size) + 1)
        steps = (self._step(stage, k) for stage in range(stages) for k in range(self.steps_per_stage))
        return max(self.offset + 1, *(step.window[-1].chunk + 1 - self.first_reached(step) for step in steps))

    @cached_property
    def _widest_from(self) -> tuple[int, ...]:
        """By a chunk's index: the widest key window, in chunks, of that step and its later ones."""
        if not self.noise2clean_kvrange:
            return (self.chunk_num,) * self.num_steps  # all there are
        share = self.num_steps // len(self.noise2clean_kvrange)
        windows = [self.noise2clean_kvrange[index // share] for index in range(self.num_steps)]
        return tuple(itertools.accumulate(reversed(windows), max))[::-1]

    def _step(self, stage: int, k: int) -> Step:
        newest = self.offset + stage
        first = max(self.offset, newest - self.window_size + 1)
        window = tuple(
            self._chunk_step(chunk, (newest - chunk) * self.steps_per_stage + k)
            for chunk in range(first, min(self.chunk_num, newest + 1))
        )
        number = stage * self.steps_per_stage + k
        clean = first - 1 if k == 0 and first > self.offset else None
        return Step(
            number=number,
            stage=stage,
            k=k,
            window=window,
            clean=clean,
            clean_key_start=0 if clean is None else self.clean_key_start(clean),
            finished=first if window[0].index == self.num_steps - 1 else None,
            is_first=number == 0,
            is_last=number == self.total_steps - 1,
        )

    def _chunk_step(self, chunk: int, index: int) -> ChunkStep:
        t, t_next = self.times[index], self.times[index + 1]
        return ChunkStep(chunk, index, float(t), float(t_next - t), self.noisy_key_start(chunk, index))


def chunk_count(num_frames: int, prefix_latents: int, chunk_width: int, temporal_factor: int = 4) -> int:
    """Chunks of a video: ``num_frames`` new frames after ``prefix_latents`` given latent frames, rounded up to whole
    chunks.
    """
    return -(-(num_frames // temporal_factor + prefix_latents) // chunk_width)
