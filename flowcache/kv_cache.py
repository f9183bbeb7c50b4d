"""A KV cache of fixed size: finished chunks are squeezed so that a new one always finds room.

Source: arXiv 2602.10825; docs/flowcache.md, "When the cache is compressed".

The memory is allocated once, ``total_cache_chunk_nums`` chunks per layer. When it is full and another chunk is about
to enter, the clean chunks (with what earlier compressions kept of their predecessors) give up one chunk's room; every
layer and every key/value group keeps its own tokens. Where tokens lie is the ledger's business, which are kept that
of ``keep_rules`` and ``scoring``, and what becomes of the others that of ``merging``.
"""

import torch
from torch import Tensor

from flowcache.config import CompressionConfig
from flowcache.keep_rules import Candidates, keep_score, lower_unreachable
from flowcache.ledger import Ledger
from flowcache.merging import TokenMerger, merger_bytes
from flowcache.scoring import Selection, queries_kept, select, select_queries
from inference.kv_cache import KVCache, KVGeometry
from inference.reuse import State, moved
from inference.schedule import Schedule, Step


class CompressedKVCache(KVCache):
    """Bounded KV cache; with room for the whole video it is the plain cache, bit for bit."""

    def __init__(self, geometry: KVGeometry, config: CompressionConfig) -> None:
        super().__init__(geometry)
        self.config = config
        self.selection = Selection(
            strategy=config.compress_strategy,
            mix_lambda=config.mix_lambda,
            weighting=config.score_weighting_method,
            power=config.power,
            chunk_tokens=geometry.chunk_tokens,
            frame_tokens=geometry.frame_tokens,
        )
        self.ledger = Ledger(config.total_cache_chunk_nums, geometry.chunk_tokens)
        # Per layer: indices (keep, G) into the compressible region, of the latest compression; read by tests and
        # reports.
        self.last_kept: list[Tensor] = []
        self._merger: TokenMerger | None = None
        # Per layer: queries of the newest chunks, by the chunk that was newest.
        self._queries: dict[int, dict[int, Tensor]] = {}
        self._positions: list[Tensor] = []

    def reset(self, schedule: Schedule) -> None:
        """Start a new video; ValueError where ``schedule`` does not fit the capacity."""
        problems = list(self.config.problems(schedule))
        if problems:
            raise ValueError("; ".join(problems))
        capacity = self._capacity(schedule)
        self._allocate(capacity)
        self.ledger = Ledger(capacity, self.geometry.chunk_tokens)
        self.last_kept = []
        self._schedule = schedule
        self._queries = {}
        self._positions = []
        squeezed = capacity < schedule.chunk_num
        self._merger = TokenMerger(self.geometry) if self.config.merge_dropped and squeezed else None

    def planned_bytes(self, schedule: Schedule) -> int:
        """With the queries kept for scoring, original positions and kept indices as 64-bit numbers, and what merging
        keeps.
        """
        planned, capacity = super().planned_bytes(schedule), self._capacity(schedule)
        if capacity == schedule.chunk_num:
            return planned
        g = self.geometry
        queries = queries_kept(self.config.query_granularity, g.chunk_tokens, g.frame_tokens)
        queries *= self.config.query_chunks if self.config.keep_rule == "importance" else 0
        kept = (capacity - schedule.window_size) * g.chunk_tokens * g.groups
        tables = 2 if self.config.kept_order == "position" else 1
        merging = merger_bytes(g, kept) if self.config.merge_dropped else 0
        return planned + merging + g.layers * (queries * g.heads * g.head_width * g.dtype.itemsize + 8 * tables * kept)

    def enter(self, chunk: int) -> None:
        self.ledger.enter(chunk)

    def span(self, chunk: int) -> tuple[int, int]:
        return self.ledger.span(chunk)

    def visible(self, chunk: int, key_start: int) -> tuple[int, int]:
        return self.ledger.visible(chunk, key_start)

    def keep_queries(self, layer: int, q: Tensor) -> None:
        """Remember the queries (N, H, d) of the newest chunk just computed, where the stage under way ends with a
        compression; those of several chunks, where so many score, before that too.

        A stage begins with a chunk that is always computed, so the latest queries of such a stage are the ones to
        score with. In three-pass models the pass that writes the cache comes last and its queries are the ones that
        stay.
        """
        schedule, several = self._require_schedule(), self.config.query_chunks
        if self._capacity(schedule) == schedule.chunk_num:
            return
        if self._merger is not None:
            self._merger.observe(layer, q)
        if self.config.keep_rule != "importance" or not (self._room_is_needed() or several > 1):
            return
        chosen = select_queries(q, self.config.query_granularity, self.geometry.frame_tokens)
        known = self._queries.setdefault(layer, {})
        known[self.ledger.whole[-1]] = chosen.clone()  # not a view, which would hold the whole layer's queries
        while len(known) > several:
            del known[min(known)]

    def compacts_after(self, step: Step) -> bool:
        newest = step.window[-1]
        return self._room_is_needed() and newest.index == self._require_schedule().steps_per_stage - 1

    def end_step(self, step: Step) -> None:
        """Make room for one chunk, where the buffer is full and a new chunk enters at the next step."""
        if not self.compacts_after(step):
            return
        last_clean = step.finished if step.finished is not None else step.chunks[0] - 1
        clean = self.ledger.count_clean(last_clean)
        tokens, chunk = self.ledger.clean_tokens(clean), self.geometry.chunk_tokens
        keep = max(tokens - chunk, chunk)
        if tokens <= keep:
            raise RuntimeError(
                f"step {step.number}: only {tokens} clean tokens in a full cache of {self.ledger.capacity}; at least "
                f"{2 * chunk} are needed to make room for a chunk of {chunk}"
            )
        used = self.ledger.used
        positions = self._clean_positions(tokens)
        reach = 0
        if self.config.drop_unreachable:
            schedule = self._require_schedule()
            reach = schedule.first_reached(schedule.step(step.number + 1)) * chunk
            kept = [int((place >= reach).sum(dim=1).max()) for place in positions if place is not None]
            # What no window reaches need not even fill the room that it might have. A dry run has no layers to ask.
            keep = min(keep, max(kept, default=(last_clean + 1) * chunk - reach)) or keep
        self.last_kept = []
        for layer in range(self.geometry.layers):
            with self.rows.edit(layer, tokens, keep) as rows:
                self.last_kept.append(self._squeeze_layer(rows, layer, keep, positions[layer], reach))
            self.rows.move(layer, tokens, used, keep)  # the whole chunks behind them
        self.ledger.compact(clean, keep)
        # With the queries of the chunk that enters next they will be those of query_chunks chunks.
        oldest = step.window[-1].chunk + 2 - self.config.query_chunks
        self._queries = {
            layer: {chunk: q for chunk, q in known.items() if chunk >= oldest} for layer, known in self._queries.items()
        }

    def state(self) -> State:
        tables = {"ledger": self.ledger.state(), "queries": self._queries, "positions": self._positions}
        merger = None if self._merger is None else self._merger.state()
        return super().state() | moved(tables | {"merger": merger}, torch.device("cpu"))

    def restore(self, state: State) -> None:
        super().restore(state)
        found = moved({name: state[name] for name in ("queries", "positions", "merger")}, self.geometry.device)
        self.ledger.restore(state["ledger"])
        self._queries, self._positions = found["queries"], found["positions"]
        if self._merger is not None:
            self._merger.restore(found["merger"])

    def _used(self) -> int:
        return self.ledger.used

    def _capacity(self, schedule: Schedule) -> int:
        return min(self.config.total_cache_chunk_nums, schedule.chunk_num)

    def _room_is_needed(self) -> bool:
        """The buffer is full and not all chunks have entered."""
        last = self._require_schedule().chunk_num - 1
        return self.ledger.full and self.ledger.whole[-1] < last

    def _squeeze_layer(self, region: Tensor, layer: int, keep: int, positions: Tensor | None, reach: int) -> Tensor:
        """Squeeze the clean tokens of a layer, ``region`` (L, G, 2d), to the first ``keep``; returns what was kept."""
        kept = self._choose(layer, region[..., : self.geometry.head_width], keep, positions, reach)
        forgotten = None
        if positions is not None:
            kept = kept.sort(dim=-1).values
            forgotten = positions < reach
            self._positions[layer] = positions.gather(1, kept)
        if self._merger is None:
            squeezed = region.gather(0, kept.T[..., None].expand(-1, -1, region.shape[-1]))
        else:
            squeezed = self._merger.merge(layer, region, kept, forgotten)
        region[:keep] = squeezed
        return kept.T

    def _choose(self, layer: int, keys: Tensor, keep: int, positions: Tensor | None, reach: int) -> Tensor:
        """Indices (G, keep) of the tokens of ``keys`` (L, G, d) that stay, best first."""
        queries = None
        if self.config.keep_rule == "importance":
            queries = torch.cat(list(self._queries[layer].values()))
        if self.config.score_dtype == "float32":
            queries, keys = None if queries is None else queries.float(), keys.float()
        candidates = Candidates(queries, keys, positions, layer, self.geometry.frame_tokens, self.selection.mix_lambda)
        score = keep_score(self.config.keep_rule, candidates, self.config.shared_mask)
        if positions is not None and reach:
            score = lower_unreachable(score, positions, reach)
        return select(score, keep, self.selection, positions)

    def _clean_positions(self, tokens: int) -> list[Tensor | None]:
        """Original position in the video of every clean token, (G, tokens) per layer; Nones where the published order
        is kept.
        """
        layers, groups = self.geometry.layers, self.geometry.groups
        if self.config.kept_order == "score":
            return [None] * layers
        first = self.ledger.whole[0] * self.geometry.chunk_tokens
        device = self.geometry.device
        fresh = first + torch.arange(tokens - self.ledger.kept, device=device).expand(groups, -1)
        if not self._positions:
            self._positions = [fresh.new_empty(groups, 0)] * layers
        return [torch.cat([known, fresh], dim=1) for known in self._positions]
