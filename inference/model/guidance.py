"""From a step of the schedule to a velocity for every chunk to be computed (docs/transformer.md, "Guidance").

A base model (``cfg_number`` 3) takes three passes: with caption, with earlier chunks only, with nothing. A distilled
model takes one, with an extra copy of a nearly clean first chunk. This is the only place that builds forwards of the
transformer in a sampling run.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from inference.config import MagiConfig
from inference.kv_cache import KVCache
from inference.model.context import CachedAttention, Entry
from inference.model.dit import CONDITIONAL_ROW, DROPPED_ROW, Captions, VideoDiT
from inference.parallel.group import ALONE, ContextParallel
from inference.record import ForwardRecord, RunRecord
from inference.schedule import Schedule, Step

# Two noise levels closer than this count as the same when the guidance scales are looked up.
T_RANGE_SLACK = 1e-7


class CaptionSource(Protocol):
    """Caption features per chunk, only the tokens that take part."""

    def packed_cond(self, chunk: int) -> Tensor:
        """(m, caption width) of the conditional branch."""
        ...

    def packed_null(self) -> Tensor:
        """(m, caption width) of the null branch, the same for every chunk."""
        ...


class Guidance:
    """Velocities of one video.

    Args:
        dit: the transformer.
        config: the whole configuration; guidance scales, clean level, thresholds.
        schedule: key windows and step-size scalar.
        cache: KV cache of this video.
        captions: caption features of this video.
        record: where forwards are counted.
        parallel: the ranks that compute the forwards together.
    """

    def __init__(
        self,
        dit: VideoDiT,
        config: MagiConfig,
        schedule: Schedule,
        cache: KVCache,
        captions: CaptionSource,
        record: RunRecord,
        parallel: ContextParallel = ALONE,
    ) -> None:
        self.dit = dit
        self.config = config
        self.schedule = schedule
        self.cache = cache
        self.captions = captions
        self.record = record
        self.parallel = parallel

    @property
    def three_pass(self) -> bool:
        return self.config.runtime.cfg_number == 3

    def extract_prefix(self, chunks: Mapping[int, Tensor]) -> None:
        """Encode the wholly given chunks, latents (16, T, H, W) each, together and clean; their keys stay in the
        cache.
        """
        entries = [Entry(chunk, self.schedule.prefix_key_start(chunk), "clean") for chunk in chunks]
        self._encode_clean("prefix", entries, list(chunks.values()), k=0)

    def encode_clean(self, step: Step, chunk: int, latents: Tensor) -> None:
        """Encode one finished chunk on its own, as if in front of the window of the step after ``step``."""
        entries = [Entry(chunk, self.schedule.clean_key_start(chunk), "clean")]
        self._encode_clean("clean", entries, [latents], k=(step.k + 1) % self.schedule.steps_per_stage)

    def velocities(
        self, step: Step, latents: Mapping[int, Tensor], todo: Sequence[int], clean: int | None, nearly_clean_copy: bool
    ) -> dict[int, Tensor]:
        """Guided velocities of the chunks ``todo``.

        Args:
            step: the step.
            latents: (16, T, H, W) of every chunk in ``todo`` and of ``clean``.
            todo: chunks to compute, ascending.
            clean: chunk to encode once more in front of them, or None.
            nearly_clean_copy: append the extra copy where the model and the noise level call for it.

        Returns:
            chunk to velocity (16, T, H, W), float32.
        """
        if not todo and clean is None:
            return {}
        if self.three_pass:
            return self._three_pass(step, latents, todo, clean)
        return self._one_pass(step, latents, todo, clean, nearly_clean_copy)

    def copied_chunk(self, step: Step, todo: Sequence[int]) -> int | None:
        """The chunk of which a distilled model makes a nearly-clean copy at this step: the window's first, if
        computed.
        """
        first = step.window[0]
        past = first.t > self.config.engine.distill_nearly_clean_chunk_threshold
        return first.chunk if past and first.chunk in todo and not self.three_pass else None

    def _one_pass(
        self, step: Step, latents: Mapping[int, Tensor], todo: Sequence[int], clean: int | None, with_copy: bool
    ) -> dict[int, Tensor]:
        entries, x, t, captions = self._window(step, latents, todo, clean, conditional=True)
        copied = self.copied_chunk(step, todo) if with_copy else None
        if copied is not None:
            entries.append(Entry(copied, role="alone"))
            x.append(latents[copied])
            t.append(step.of(copied).t)
            captions.append(self.captions.packed_cond(copied))
        out = self._forward("text", entries, x, t, captions, CONDITIONAL_ROW, step.k)
        front = 0 if clean is None else 1
        velocities = {chunk: out[front + i] for i, chunk in enumerate(todo)}
        if copied is not None:
            share = self.config.runtime.distill_prev_chunks_scale
            velocities[copied] = share * velocities[copied] + (1 - share) * out[-1]
        return velocities

    def _three_pass(
        self, step: Step, latents: Mapping[int, Tensor], todo: Sequence[int], clean: int | None
    ) -> dict[int, Tensor]:
        # The text pass writes its keys too, so that the chunks of this pass see each other; the next pass computes
        # the same chunks and overwrites them, so what stays is what the pass without caption computed.
        entries, x, t, captions = self._window(step, latents, todo, clean, conditional=True)
        text = self._forward("text", entries, x, t, captions, CONDITIONAL_ROW, step.k)
        entries, x, t, captions = self._window(step, latents, todo, clean, conditional=False)
        previous = self._forward("previous", entries, x, t, captions, DROPPED_ROW, step.k)
        if not todo:
            return {}
        front = 0 if clean is None else 1
        entries = [Entry(chunk, role="alone") for chunk in todo]
        alone = self._forward("alone", entries, x[front:], t[front:], captions[front:], DROPPED_ROW, step.k)
        velocities = {}
        for i, chunk in enumerate(todo):
            p, c = self._scales(step.of(chunk).t)
            velocities[chunk] = (1 - p) * alone[i] + (p - c) * previous[front + i] + c * text[front + i]
        return velocities

    def _scales(self, t: float) -> tuple[float, float]:
        """Guidance scales (earlier chunks, text) at noise level ``t``."""
        runtime = self.config.runtime
        j = max(i for i, level in enumerate(runtime.cfg_t_range) if level - T_RANGE_SLACK < t or i == 0)
        return runtime.prev_chunk_scales[j], runtime.text_scales[j]

    def _window(
        self, step: Step, latents: Mapping[int, Tensor], todo: Sequence[int], clean: int | None, conditional: bool
    ) -> tuple[list[Entry], list[Tensor], list[float], list[Tensor]]:
        """Entries, latents, noise levels and captions of a forward: the clean chunk in front, then the chunks to
        compute.
        """
        entries, x, t, captions = [], [], [], []
        if clean is not None:
            entries.append(Entry(clean, step.clean_key_start, "clean"))
            x.append(latents[clean])
            t.append(self.config.runtime.clean_t)
            captions.append(self.captions.packed_null())
        for chunk in todo:
            entries.append(Entry(chunk, step.of(chunk).key_start))
            x.append(latents[chunk])
            t.append(step.of(chunk).t)
            captions.append(self.captions.packed_cond(chunk) if conditional else self.captions.packed_null())
        return entries, x, t, captions

    def _levels(self, t: list[float], device: torch.device) -> Tensor:
        """The noise levels of a forward's entries, (E,) float32."""
        return torch.tensor(t, dtype=torch.float32, device=device)

    def _encode_clean(self, kind: str, entries: list[Entry], x: list[Tensor], k: int) -> None:
        row = DROPPED_ROW if self.three_pass else CONDITIONAL_ROW
        captions = [self.captions.packed_null()] * len(entries)
        self._forward(kind, entries, x, [self.config.runtime.clean_t] * len(entries), captions, row, k)

    def _forward(
        self, kind: str, entries: list[Entry], x: list[Tensor], t: list[float], captions: list[Tensor], row: int, k: int
    ) -> Tensor:
        context = CachedAttention(self.cache, entries, self.dit.backend)
        packed = Captions.of(captions)
        # Without earlier chunks an entry's time starts at 0, except for the copy, which keeps the place of its
        # original.
        start_anew = kind == "alone"
        frames = x[0].shape[1]
        out = self.dit(
            torch.stack(x),
            self._levels(t, x[0].device),
            packed,
            context,
            first_frames=[0 if start_anew else entry.chunk * frames for entry in entries],
            adaln_row=row,
            step_scalar=self.schedule.step_scalar(k),
            parallel=self.parallel,
        )
        keys = context.key_counts()
        self.record.add_forward(ForwardRecord(kind, self.cache.geometry.chunk_tokens, keys, packed.lengths))
        return out
