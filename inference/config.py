"""MAGI-1's configuration file, typed and checked.

One JSON with three sections, ``model_config``, ``runtime_config`` and ``engine_config``; the published files load
unchanged (docs/configuration.md, "Model configuration"). A few optional fields are ours: they have defaults, so that
published files need not name them. Everything a file gets wrong is reported at once, before anything is loaded.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, model_validator

from inference.config_errors import ConfigError, explain_all, multiples_around, unknown_field
from inference.files import read_json

if TYPE_CHECKING:
    import torch

REPOSITORY_ROOT = Path(__file__).resolve().parents[1]

# Facts of the published autoencoder and transformer that no config field can change.
VAE_SPATIAL_FACTOR = 8
VAE_TEMPORAL_FACTOR = 4
VAE_CHANNELS = 16
PROJECTION_SHARDS = 8  # the attention output is reordered as (2, 8, h*d/8)
NULL_CAPTION_TOKENS = 50  # the null branch attends to this many rows of the learned caption

# Frames of a video that has no end; more than any run will make.
ENDLESS = 2**50

Count = Annotated[int, Field(ge=1)]
Frames = Annotated[
    Count,
    BeforeValidator(lambda value: ENDLESS if value == "endless" else value),
    PlainSerializer(lambda value: "endless" if value > ENDLESS // 2 else value),
]
Positive = Annotated[float, Field(gt=0)]
# Strict everywhere else; JSON and Python callers both write sequences as lists, which a strict tuple would refuse.
Floats = Annotated[tuple[float, ...], Field(strict=False)]
Counts = Annotated[tuple[Count, ...], Field(strict=False)]
# "auto" is decided from the device and the memory found on it (docs/memory.md, "Automatic choices").
Switch = Literal["auto", True, False]
# How keys and values are stored (docs/memory.md, "Keys and values in fewer bits").
KVDtype = Literal["model", "int8", "int4"]
# What may leave the device, by the fields of the engine that say whether it does.
SWITCHES = ("offload_t5", "offload_vae", "kv_offload", "stream_weights")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class ModelConfig(_Section):
    """Architecture of the transformer (docs/configuration.md, "model_config")."""

    model_name: str
    num_layers: Count
    hidden_size: Count
    ffn_hidden_size: Count
    num_attention_heads: Count
    num_query_groups: Count
    kv_channels: Count
    layernorm_epsilon: Positive
    apply_layernorm_1p: bool
    x_rescale_factor: Positive
    half_channel_vae: bool
    params_dtype: Literal["torch.bfloat16", "torch.float32"]
    patch_size: Count
    t_patch_size: Count
    in_channels: Count
    out_channels: Count
    cond_hidden_ratio: Positive
    caption_channels: Count
    caption_max_length: Count
    xattn_cond_hidden_ratio: Positive
    cond_gating_ratio: Positive
    gated_linear_unit: bool

    @property
    def dtype(self) -> "torch.dtype":
        """The dtype the layers compute in."""
        import torch  # seconds, which are not spent where a configuration is only read

        return {"torch.bfloat16": torch.bfloat16, "torch.float32": torch.float32}[self.params_dtype]

    @property
    def latent_channels(self) -> int:
        """Channels of the latents outside the transformer, which doubles them when ``half_channel_vae``."""
        return self.in_channels // 2 if self.half_channel_vae else self.in_channels

    def problems(self) -> Iterator[str]:
        heads, groups, width = self.num_attention_heads, self.num_query_groups, self.kv_channels
        if heads % groups:
            yield f"num_attention_heads {heads} is not a multiple of num_query_groups {groups}"
        if self.hidden_size != heads * width:
            yield (
                f"hidden_size {self.hidden_size} is not num_attention_heads {heads} x kv_channels {width} "
                f"= {heads * width}"
            )
        if width % 8:
            yield f"kv_channels {width} is not a multiple of 8, so the rotary embedding has no whole number of bands"
        if (heads * width) % PROJECTION_SHARDS:
            yield (
                f"num_attention_heads {heads} x kv_channels {width} = {heads * width} is not a multiple of "
                f"{PROJECTION_SHARDS}, which the order of the attention output's features needs"
            )
        if not (self.hidden_size * self.cond_hidden_ratio).is_integer():
            yield (f"hidden_size {self.hidden_size} x cond_hidden_ratio {self.cond_hidden_ratio} is not a whole number")
        expected = 2 * VAE_CHANNELS if self.half_channel_vae else VAE_CHANNELS
        if (self.in_channels, self.out_channels) != (expected, expected):
            yield (
                f"in_channels {self.in_channels} and out_channels {self.out_channels} must both be {expected} "
                f"with half_channel_vae {str(self.half_channel_vae).lower()}: the latents have {VAE_CHANNELS} channels"
            )
        if self.caption_max_length < NULL_CAPTION_TOKENS:
            yield (
                f"caption_max_length {self.caption_max_length} is below {NULL_CAPTION_TOKENS}, "
                "the length of the null caption; published models use 800"
            )
        yield from self._unsupported()

    def _unsupported(self) -> Iterator[str]:
        """Settings that no published model uses and whose meaning is therefore not known."""
        for name, only in (
            ("t_patch_size", 1),
            ("apply_layernorm_1p", True),
            ("xattn_cond_hidden_ratio", 1.0),
            ("cond_gating_ratio", 1.0),
        ):
            if getattr(self, name) != only:
                yield f"{name} {getattr(self, name)} is not supported; every published model has {only}"


class RuntimeConfig(_Section):
    """What is sampled and how (docs/configuration.md, "runtime_config"). Sizes in pixels, lengths in video frames."""

    cfg_number: Literal[1, 3]
    cfg_t_range: Floats
    prev_chunk_scales: Floats
    text_scales: Floats
    noise2clean_kvrange: Counts
    clean_chunk_kvrange: int
    clean_t: Annotated[float, Field(gt=0, le=1)]
    seed: Annotated[int, Field(ge=0)]
    num_frames: Frames
    video_size_h: Count
    video_size_w: Count
    num_steps: Count
    window_size: Count
    fps: Count
    chunk_width: Count
    load: str | None
    t5_pretrained: str | None
    t5_device: str
    vae_pretrained: str | None
    scale_factor: Positive
    temporal_downsample_factor: int

    # Ours, absent from the published files.
    special_token_path: str | None = None
    pad_static: bool = False
    pad_dynamic: bool = False
    pad_borderness: bool = False
    pad_hq: bool = True
    pad_three_d_model: bool = False
    pad_two_d_anime: bool = False
    pad_duration: bool = True
    neg_prompt: bool = False
    distill_prev_chunks_scale: float = 0.7
    prefix_selection: Literal["last", "first"] = "last"
    text_cache: str | None = None
    known_prompts: str | None = None

    @property
    def endless(self) -> bool:
        """The video goes on until somebody ends it."""
        return self.num_frames > ENDLESS // 2

    @property
    def steps_per_stage(self) -> int:
        """Denoising steps between one chunk's entering the window and the next one's."""
        return self.num_steps // self.window_size

    def problems(self) -> Iterator[str]:
        if self.num_steps % self.window_size:
            yield (
                f"num_steps {self.num_steps} is not a multiple of window_size {self.window_size}; "
                f"the nearest are {multiples_around(self.num_steps, self.window_size)}"
            )
        ranges = len(self.noise2clean_kvrange)
        if ranges and self.num_steps % ranges:
            yield (
                f"num_steps {self.num_steps} is not a multiple of the {ranges} entries of noise2clean_kvrange "
                f"{list(self.noise2clean_kvrange)}; the nearest are {multiples_around(self.num_steps, ranges)}"
            )
        if self.clean_chunk_kvrange < 1 and self.clean_chunk_kvrange != -1:
            yield (
                f"clean_chunk_kvrange {self.clean_chunk_kvrange} is neither a number of chunks (at least 1) "
                "nor -1 (the last entry of noise2clean_kvrange)"
            )
        if self.temporal_downsample_factor != VAE_TEMPORAL_FACTOR:
            yield (
                f"temporal_downsample_factor {self.temporal_downsample_factor} is not supported: the autoencoder "
                f"packs {VAE_TEMPORAL_FACTOR} frames into one latent, a chunk of {self.chunk_width} latents is "
                f"{self.chunk_width * VAE_TEMPORAL_FACTOR} frames"
            )
        yield from self._guidance_problems()

    def _guidance_problems(self) -> Iterator[str]:
        times, previous, text = self.cfg_t_range, self.prev_chunk_scales, self.text_scales
        if not len(times) == len(previous) == len(text):
            yield (
                "cfg_t_range, prev_chunk_scales and text_scales must have one entry each per time range, "
                f"not {len(times)}, {len(previous)} and {len(text)}"
            )
        if any(later <= earlier for earlier, later in itertools.pairwise(times)):
            yield f"cfg_t_range {list(times)} is not ascending"
        if self.cfg_number == 3 and (not times or times[0] > 0):
            yield f"cfg_t_range {list(times)} must start at 0, so that every noise level has its guidance scales"


class EngineConfig(_Section):
    """How the model is run (docs/configuration.md, "engine_config")."""

    distributed_backend: str
    distributed_timeout_minutes: Positive
    pp_size: Count
    cp_size: Count
    cp_strategy: str
    ulysses_overlap_degree: Count
    fp8_quant: bool
    distill_nearly_clean_chunk_threshold: float
    shortcut_mode: Literal["8,16,16", "16,16,8"]
    distill: bool
    kv_offload: Switch  # published as true or false
    enable_cuda_graph: bool

    # Ours, absent from the published files.
    attention_backend: Literal["auto", "sdpa", "eager", "varlen", "flash2", "flash3"] = "auto"
    fp8_matmul: Literal["auto", "scaled_mm", "dequantise"] = "auto"
    fused_kernels: Switch = "auto"
    kv_dtype: KVDtype = "model"
    compile: bool = False
    offload_t5: Switch = "auto"
    offload_vae: Switch = "auto"
    overlap_decode: Switch = "auto"
    stream_weights: Switch = "auto"


class MagiConfig(_Section):
    """The whole file. Built with :func:`load_config` or :meth:`from_json_dict`, never changed afterwards."""

    # pydantic reserves the name `model_config` for its own settings, hence the shorter attribute names.
    model: ModelConfig = Field(alias="model_config")
    runtime: RuntimeConfig = Field(alias="runtime_config")
    engine: EngineConfig = Field(alias="engine_config")

    @classmethod
    def from_json_dict(cls, data: dict[str, Any], source: str = "configuration") -> Self:
        """Validate ``data``, the parsed JSON. ``source`` names it in messages. Raises :class:`ConfigError`."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            problems = explain_all(error, _SECTIONS)
        raise ConfigError(source, problems)

    def to_json_dict(self, *, full: bool = False) -> dict[str, Any]:
        """The published format. What was never set stays out, so that a file comes back as it was; ``full`` adds it."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=not full)

    def with_overrides(self, **fields: Any) -> "MagiConfig":
        """A validated copy with some fields replaced. Field names are unique over the three sections.

        Raises :class:`ConfigError` for an unknown field or when the changed configuration contradicts itself.
        """
        data = self.to_json_dict()
        unknown = []
        for name, value in fields.items():
            section = next((key for key, cls in _SECTIONS.items() if name in cls.model_fields), None)
            if section is None:
                unknown.append(unknown_field(name, "", _SECTIONS))
            else:
                data[section][name] = value
        if unknown:
            raise ConfigError("overrides", unknown)
        return type(self).from_json_dict(data, source="configuration with overrides")

    @property
    def tokens_per_frame(self) -> int:
        """Transformer tokens of one latent frame."""
        cell = VAE_SPATIAL_FACTOR * self.model.patch_size
        return (self.runtime.video_size_h // cell) * (self.runtime.video_size_w // cell)

    @property
    def tokens_per_chunk(self) -> int:
        return self.tokens_per_frame * self.runtime.chunk_width

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = [f"model_config: {p}" for p in self.model.problems()]
        problems += [f"runtime_config: {p}" for p in self.runtime.problems()]
        problems += list(self._contradictions())
        if problems:
            raise ValueError(*problems)
        return self

    def _contradictions(self) -> Iterator[str]:
        """Settings of different sections that exclude one another."""
        cell = VAE_SPATIAL_FACTOR * self.model.patch_size
        for name in ("video_size_h", "video_size_w"):
            size = getattr(self.runtime, name)
            if size % cell:
                yield (
                    f"runtime_config: {name} {size} is not a multiple of {cell} ({VAE_SPATIAL_FACTOR} pixels a "
                    f"latent, {self.model.patch_size} latents a patch); the nearest are {multiples_around(size, cell)}"
                )
        one_pass = self.engine.distill or self.engine.fp8_quant
        expected = 1 if one_pass else 3
        if self.runtime.cfg_number != expected:
            yield (
                f"runtime_config: cfg_number {self.runtime.cfg_number} contradicts engine_config: distill "
                f"{str(self.engine.distill).lower()}, fp8_quant {str(self.engine.fp8_quant).lower()}; a distilled or "
                f"fp8 model needs cfg_number 1, any other 3, so set it to {expected}"
            )


def load_config(path: str | Path) -> MagiConfig:
    """Read and validate a configuration file.

    Raises ``FileNotFoundError`` for a missing file and :class:`ConfigError`, with every problem, for a wrong one.
    """
    file = require_path(path, "configuration file")
    try:
        data = read_json(file)
    except IsADirectoryError:
        raise ConfigError(str(file), ["is a folder, not a JSON file"]) from None
    except ValueError as error:  # not JSON, not UTF-8, or a key given twice
        raise ConfigError(str(file), [f"not a JSON configuration: {error}"]) from error
    if not isinstance(data, dict):
        raise ConfigError(str(file), [f"holds a JSON {type(data).__name__}, not an object with three sections"])
    return MagiConfig.from_json_dict(data, source=str(file))


def resolve_path(path: str | Path) -> Path:
    """Where a path of a configuration file points to.

    A relative path is taken from the working directory, as MAGI-1 does; where nothing of that name exists, from the
    root of this repository, so that the files in ``configs/`` work from any directory. The result need not exist.
    """
    given = Path(path).expanduser()
    if given.is_absolute() or given.exists() or not (REPOSITORY_ROOT / given).exists():
        return given
    return REPOSITORY_ROOT / given


def require_path(path: str | Path | None, setting: str) -> Path:
    """:func:`resolve_path`, raising ``FileNotFoundError`` that names ``setting`` and every place that was tried."""
    if path is None:
        raise FileNotFoundError(f"{setting} is not set (null); it must name an existing path")
    found = resolve_path(path)
    if found.exists():
        return found
    given = Path(path).expanduser()
    tried = dict.fromkeys(folder / given for folder in (Path.cwd(), REPOSITORY_ROOT))
    raise FileNotFoundError(f"{setting}: {path} does not exist (tried {', '.join(map(str, tried))})")


def runtime_support_warnings(config: MagiConfig, ranks: int = 1) -> list[str]:
    """Published options that a run by ``ranks`` processes accepts and ignores: none changes what is computed."""
    engine, ignored = config.engine, []
    if engine.cp_size > 1 and ranks == 1:
        ignored.append(
            f"engine_config.cp_size {engine.cp_size} is ignored: this is one process; --gpus {engine.cp_size} starts "
            "that many, which share the work"
        )
    if engine.ulysses_overlap_degree > 1:
        ignored.append(
            f"engine_config.ulysses_overlap_degree {engine.ulysses_overlap_degree} is ignored: tokens are exchanged "
            "before they are computed with"
        )
    if engine.enable_cuda_graph:
        ignored.append("engine_config.enable_cuda_graph is ignored: layers are launched one by one")
    return ignored


_SECTIONS: dict[str, type[_Section]] = {
    "model_config": ModelConfig,
    "runtime_config": RuntimeConfig,
    "engine_config": EngineConfig,
}
