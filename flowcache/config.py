"""FlowCache's parameters, by the names their users know, checked before a run (docs/flowcache.md, "Parameters")."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from inference.settings import ReuseSettings, Settings

if TYPE_CHECKING:
    from inference.schedule import Schedule

CompressStrategy = Literal["token", "frame", "chunk"]
KeepRule = Literal["importance", "recent", "sinks", "random", "spread"]
QueryGranularity = Literal["token", "frame", "chunk"]
KeptOrder = Literal["score", "position"]
ScoreDtype = Literal["float32", "compute"]
ScoreWeighting = Literal["no_weight", "hard_code", "exponential", "polynomial", "upper_convex_polynomial", "gaussian"]


class CompressionConfig(Settings):
    """Parameters of the compressed KV cache, which works with any way of reuse. The defaults compress nothing."""

    compress_kv_cache: bool = Field(False, description="keep the KV cache within total_cache_chunk_nums chunks")
    total_cache_chunk_nums: Annotated[int, Field(ge=2)] = Field(
        5, description="cache capacity in chunks (B_total); at least window_size + 1"
    )
    compress_strategy: CompressStrategy = Field("token", description="what is kept or dropped as one")
    keep_rule: KeepRule = Field(
        "importance",
        description="which tokens are kept: importance against redundancy as published, the most recent, the first "
        "frame and the most recent (sinks), random ones or evenly spread ones of the whole history",
    )
    shared_mask: bool = Field(False, description="all key/value groups of a layer keep the same tokens")
    merge_dropped: bool = Field(
        False,
        description="average a token that is not kept into the kept one nearest to it, which then weighs for both",
    )
    drop_unreachable: bool = Field(
        False, description="tokens that no later chunk's key window reaches go before all others"
    )
    query_chunks: Annotated[int, Field(ge=1)] = Field(
        1, description="so many of the newest chunks' queries score importance together"
    )
    query_granularity: QueryGranularity = Field(
        "chunk", description="queries that score importance: the last 50 tokens, the last frame, or the whole chunk"
    )
    mix_lambda: Annotated[float, Field(ge=0, le=1)] = Field(0.07, description="weight of importance against redundancy")
    score_weighting_method: ScoreWeighting = Field(
        "no_weight", description="weight of a token's score by its position (strategy token only)"
    )
    power: Annotated[float, Field(gt=0)] = Field(3.0, description="exponent of the polynomial position weights")
    kept_order: KeptOrder = Field(
        "position",
        description="order of kept tokens in the buffer: by original position, or by score as published (then "
        "neighbours and positions lose their meaning after the first compression)",
    )
    score_dtype: ScoreDtype = Field(
        "float32", description="arithmetic of the scores: float32, or the model's compute dtype as published"
    )

    def problems(self, schedule: "Schedule") -> Iterator[str]:
        """What stands against running these settings on ``schedule``, one sentence each with its numbers."""
        if not self.compress_kv_cache:
            return
        yield from self._contradictions()
        capacity, window = self.total_cache_chunk_nums, schedule.window_size
        if capacity < window + 1:
            yield (
                f"total_cache_chunk_nums {capacity} is below window_size + 1 = {window + 1}: the window alone would "
                f"fill the cache; raise it to at least {window + 1}"
            )
        if schedule.offset > capacity - 1:
            yield (
                f"the prefix fills {schedule.offset} chunks, but total_cache_chunk_nums {capacity} leaves room for "
                f"{capacity - 1} besides the first new one; raise it to {schedule.offset + 1} or shorten the prefix"
            )

    def _contradictions(self) -> Iterator[str]:
        """Settings that do not go together, whatever the schedule."""
        by_importance = self.keep_rule == "importance"
        if self.kept_order == "score" and (not by_importance or self.drop_unreachable):
            given = "drop_unreachable" if by_importance else f"keep_rule {self.keep_rule}"
            yield f"{given} looks at places in the video, which kept_order score forgets; set kept_order position"
        if self.score_weighting_method != "no_weight" and not by_importance:
            yield (
                f"score_weighting_method {self.score_weighting_method} weighs the scores of keep_rule importance; with "
                f"keep_rule {self.keep_rule} set no_weight"
            )
        if self.query_chunks > 1 and not by_importance:
            yield f"query_chunks {self.query_chunks}: keep_rule {self.keep_rule} looks at no queries; leave it at 1"


class FlowCacheConfig(CompressionConfig, ReuseSettings):
    """One field per parameter. The defaults reuse and compress nothing: MAGI-1 itself, bit for bit."""

    max_consecutive_reuse: Annotated[int, Field(ge=1)] | None = Field(
        None, description="bounded staleness: at most this many reuses of a chunk in a row"
    )
