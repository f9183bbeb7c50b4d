"""FlowCache's parameters, by the names their users know, checked before a run (docs/flowcache.md, "Parameters")."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inference.schedule import Schedule

CompressStrategy = Literal["token", "frame", "chunk"]
QueryGranularity = Literal["token", "frame", "chunk"]
ReuseForm = Literal["gain", "velocity", "linear"]
KeptOrder = Literal["score", "position"]
ScoreDtype = Literal["float32", "compute"]
ScoreWeighting = Literal["no_weight", "hard_code", "exponential", "polynomial", "upper_convex_polynomial", "gaussian"]


class FlowCacheConfig(BaseModel):
    """One field per parameter. The defaults reuse and compress nothing: MAGI-1 itself, bit for bit."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    rel_l1_thresh: Annotated[float, Field(ge=0)] = Field(
        0.0, description="accumulated relative-L1 change under which a chunk is reused; 0 computes every chunk"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        5, description="steps of each chunk's own count during which it is always computed"
    )
    reuse_form: ReuseForm = Field(
        "linear",
        description="what a reused chunk gains: gain (its last change, as published), velocity (its last velocity "
        "times this step's dt), linear (the last two computed velocities extrapolated in t)",
    )
    clean_pass: bool = Field(True, description="encode each finished chunk once more, clean, as MAGI-1 does")
    protect_last_step: bool = Field(
        True, description="always compute a chunk's own last step, whose keys and values stay when clean_pass is off"
    )
    max_consecutive_reuse: Annotated[int, Field(ge=1)] | None = Field(
        None, description="bounded staleness: at most this many reuses of a chunk in a row"
    )
    discard_nearly_clean_chunk: bool = Field(
        False, description="leave out the distilled model's extra copy of a nearly clean first chunk"
    )
    compress_kv_cache: bool = Field(False, description="keep the KV cache within total_cache_chunk_nums chunks")
    total_cache_chunk_nums: Annotated[int, Field(ge=2)] = Field(
        5, description="cache capacity in chunks (B_total); at least window_size + 1"
    )
    compress_strategy: CompressStrategy = Field("token", description="what is kept or dropped as one")
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

    def problems(self, schedule: Schedule) -> Iterator[str]:
        """What stands against running these settings on ``schedule``, one sentence each with its numbers."""
        if not self.compress_kv_cache:
            return
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


def load_method(path: Path) -> dict[str, Any]:
    """The contents of a method file (YAML); ValueError with the path where it is no mapping."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"method file {path} does not exist; see configs/method/") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"method file {path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"method file {path} must hold a mapping of parameters, not {type(raw).__name__}")
    return raw


def make_config(values: dict[str, Any], source: str) -> FlowCacheConfig:
    """Check ``values``; ValueError lists every problem with the name of ``source``."""
    try:
        return FlowCacheConfig.model_validate(values)
    except ValidationError as error:
        known = ", ".join(sorted(FlowCacheConfig.model_fields))
        lines = []
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                lines.append(f"unknown parameter {name!r}; known are {known}")
            else:
                lines.append(f"{name} = {problem['input']!r}: {problem['msg']}")
        raise ValueError(f"{source}: " + "; ".join(lines)) from error
