"""Families ``sample_*`` and ``flowcache_*``: whole sampling runs, without caching and with the published FlowCache."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowcache.config import FlowCacheConfig
from flowcache.decider import ChunkwiseDecider
from flowcache.kv_cache import CompressedKVCache
from harness.methods import Method, load_method
from inference.config import REPOSITORY_ROOT, MagiConfig
from inference.kv_cache import KVCache
from inference.model.dit import VideoDiT
from inference.parallel.group import ALONE, ContextParallel
from inference.record import RunRecord, StepRecord
from inference.reuse import Reuse
from inference.sampler import Sampler, kv_geometry, make_schedule
from inference.schedule import Schedule, Step
from inference.text.captions import ChunkCaptions, PromptFlags, SpecialTokens, assemble_captions
from scripts.parity.common import (
    AS_RECORDED,
    RELATIVE_TOLERANCE,
    CheckResult,
    Setup,
    absolute_error,
    equal,
    guarded,
    listed_cases,
    read_tensors,
    relative_error,
)
from scripts.parity.dit import load_model
from scripts.parity.kvcompress import differing_tokens

FAMILIES = ("sample", "flowcache")
ACCUMULATOR_TOLERANCE = 1e-7  # absolute; the reference reached 1e-8


def published_settings(case: dict) -> FlowCacheConfig:
    """The published preset with the parameters of a case: what the preset adds is how the release does things."""
    preset = load_method(REPOSITORY_ROOT / "configs/method/flowcache_published.yaml")
    for key in ("method", "noise2clean_kvrange"):
        del preset[key]
    return FlowCacheConfig(**(preset | case["flowcache"] | (case["kv_compression"] or {})))


def claims(name: str) -> bool:
    return name.startswith(tuple(f"{family}_" for family in FAMILIES))


def check(directory: Path, parallel: ContextParallel = ALONE, setup: Setup = AS_RECORDED) -> Iterator[CheckResult]:
    """Every case, computed by the ranks of ``parallel`` together; what is said on the first of them counts."""
    for family in FAMILIES:
        for name, case in listed_cases(directory, family, f"{family}_index.json", f"{family}_"):
            if isinstance(case, CheckResult):
                yield case
                continue
            yield from guarded(family, name, partial(_check_case, family, name, case, directory, parallel, setup))


def _check_case(
    family: str, name: str, case: dict, directory: Path, parallel: ContextParallel, setup: Setup
) -> Iterator[CheckResult]:
    data = read_tensors(directory / f"{family}_{name}.safetensors", setup.device)
    run = _Run(directory, case, data, parallel, setup)
    yield from _compare(family, name, case, data, run.results())
    for quantity, actual in run.counts().items():
        if quantity in case:
            yield equal(family, name, quantity, actual, case[quantity])


class _Recorder:
    """Passes everything on to a decider and an advancer; keeps every step's velocities and the accumulators."""

    def __init__(self, reuse: Reuse) -> None:
        self.inner = reuse
        self.velocities: dict[int, list[Tensor]] = {}
        self.accumulated: list[list[float]] = []
        # The decider forgets chunks that have left the window.
        self._latest: dict[int, float] = {}
        self._chunks = 0

    def reuse(self) -> Reuse:
        """As an argument of the sampler, which makes both as new, each through this."""
        return replace(self.inner, decider=self, advancer=self)

    def reset(self, schedule: Schedule) -> None:
        self.inner.reset(schedule)
        self._chunks = schedule.chunk_num

    def select(self, step: Step, features: Any) -> tuple[int, ...]:
        todo = self.inner.decider.select(step, features)
        if isinstance(self.inner.decider, ChunkwiseDecider):
            self._latest |= self.inner.decider.accumulated
            self.accumulated.append([self._latest.get(chunk, 0.0) for chunk in range(self._chunks)])
        return todo

    def observe(self, step: Step, chunk: int, velocity: Tensor) -> Tensor | None:
        self.velocities.setdefault(step.number, []).append(velocity)
        return self.inner.advancer.observe(step, chunk, velocity)

    def advance(self, step: Step, chunk: int) -> Tensor:
        return self.inner.advancer.advance(step, chunk)


class _Run:
    """One run of a case and what came out of it, under the names of the reference data."""

    def __init__(
        self, directory: Path, case: dict, data: dict[str, Tensor], parallel: ContextParallel, setup: Setup
    ) -> None:
        self.parallel = parallel
        self.case = case
        self.data = data
        self.dit, self.config = load_model(directory, case, setup)
        self.prefix = data.get("in.prefix_latents")
        geometry = kv_geometry(self.config, setup.device, parallel.ranks)
        self.cache = KVCache(geometry)
        method = Method("none", "reference")
        if "flowcache" in case:
            settings = published_settings(case)
            method = Method("flowcache", "reference", settings)
            if settings.compress_kv_cache:
                self.cache = CompressedKVCache(geometry, settings)
        self.recorder = _Recorder(method.make_reuse())
        self.kept: list[Tensor] = []
        self.numbers: list[int] = []
        self.record = RunRecord()

    def counts(self) -> dict[str, Any]:
        """What the index states about a run besides its settings."""
        steps = self.record.steps
        return {
            "chunks": self.numbers,
            "chunk_num": self.record.chunk_num,
            "forward_steps": len(steps),
            "reused": self.record.reused,
            "active": self.record.reused + self.record.computed,
            "layers": self.config.model.num_layers,
            "compress_budgets": [len(kept) for kept in self.kept],
        }

    def results(self) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        captions = reference_captions(self.dit, self.config, self.case, self.data)
        sampler = Sampler(self.dit, self.config, self.cache, self.recorder.reuse(), self.parallel)
        for chunk in sampler.run(self.data["in.noise"], captions, self.prefix, on_step=self._after_step):
            seen[f"out.chunk{chunk.number}"] = chunk.latents
            self.numbers.append(chunk.number)
        self.record = sampler.record
        seen |= {f"out.compress{i:02d}.kept_token_index": kept for i, kept in enumerate(self.kept)}
        seen["out.reuse_map"] = torch.tensor(self.record.reuse_map())
        seen["out.accumulated_rel_l1"] = torch.tensor(self.recorder.accumulated)
        seen |= self._intermediate(captions)
        return seen

    def _after_step(self, step: StepRecord) -> None:
        if step.compacted and isinstance(self.cache, CompressedKVCache):
            for kept in self.cache.last_kept:
                # (keep, G) of the groups of every rank: each "computes" its own.
                groups = self.parallel.map(lambda own: own, [kept] * self.parallel.ranks)
                self.kept.append(torch.cat(groups, dim=1))

    def _intermediate(self, captions: ChunkCaptions) -> dict[str, Tensor]:
        schedule = make_schedule(self.config, 0 if self.prefix is None else self.prefix.shape[2])
        features, mask = captions.padded_cond()
        seen = {
            "mid.t_schedule": torch.from_numpy(schedule.times),
            "mid.time_interval": torch.tensor(schedule.intervals),
            "mid.y_cond_first72": features[:, :72],
            "mid.y_mask_cond_first72": mask[:, :72],
            "mid.y_mask_null_first72": captions.null_mask[:72].expand(len(mask), -1),
        }
        for number, velocities in self.recorder.velocities.items():
            seen[f"mid.velocity_step{number}"] = torch.cat(velocities, dim=1)[None]
        return seen


def reference_captions(dit: VideoDiT, config: MagiConfig, case: dict, data: dict[str, Tensor]) -> ChunkCaptions:
    """The captions of a case, from its prompt features, padded from 64 positions, and its special tokens."""
    length, width = config.model.caption_max_length, config.model.caption_channels
    stored = data["in.mask_first64"].shape[1]
    device = data["in.mask_first64"].device
    features = torch.zeros(1, 1, length, width, device=device)
    features[:, :, :stored] = data["in.caption_first64"]
    mask = torch.zeros(1, length, device=device)
    mask[:, :stored] = data["in.mask_first64"]
    prefix = "in.token."
    tokens = {key.removeprefix(prefix): value for key, value in data.items() if key.startswith(prefix)}
    return assemble_captions(
        features,
        mask,
        dit.y_embedder.null_caption_embedding,
        SpecialTokens.from_dict(tokens),
        PromptFlags.from_switches(case["pad_flags"]),
        case["chunk_num"],
        (case["prefix_latent_frames"] or 0) // config.runtime.chunk_width,
    )


def _compare(
    family: str, name: str, case: dict, data: dict[str, Tensor], seen: dict[str, Tensor]
) -> Iterator[CheckResult]:
    produced = {key for key in seen if key.startswith(("out.chunk", "out.compress"))}
    for key in sorted(produced - set(data)):
        yield CheckResult(family, name, key, float("inf"), 0, "the reference has no such result")
    for key in sorted(data):
        if key.startswith("in."):
            continue
        if key not in seen:
            yield CheckResult(family, name, key, float("inf"), 0, "nothing of ours to compare it with")
            continue
        yield CheckResult(family, name, key, *_error(key, case, seen[key], data[key]))


def _error(key: str, case: dict, actual: Tensor, expected: Tensor) -> tuple[float, float]:
    """Error and tolerance of one quantity."""
    if key.endswith("kept_token_index"):
        return differing_tokens(actual, expected), 0
    if key in ("out.reuse_map", "mid.time_interval") or key.startswith("mid.y_mask"):
        return absolute_error(actual, expected), 0
    if key == "out.accumulated_rel_l1":
        return absolute_error(actual, expected), ACCUMULATOR_TOLERANCE
    if key.startswith("mid.velocity") and actual.shape[2] < expected.shape[2]:
        # A clean chunk stands in front of this window; the reference kept latents in its place.
        expected = expected[:, :, expected.shape[2] - actual.shape[2] :]
    return relative_error(actual, expected), RELATIVE_TOLERANCE
