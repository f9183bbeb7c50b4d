"""Prompt (and image or video) to frames: the models of a run, loaded once, and the way through them.

    text -> caption features          prefix frames -> latents
                      \\               /
                       sampler: clean chunks, one after the other
                                  |
                        VAE, frame by frame to the caller

A ``MagiPipeline`` keeps models only. What belongs to one video (noise, caches, records) is made per call, so a second
video in a process equals the first one in a fresh process.
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inference.config import (
    MagiConfig,
    require_path,
    resolve_path,
    runtime_support_warnings,
)
from inference.kv_cache import KVCache
from inference.memory.host import check_host, refuse_too_large
from inference.memory.plan import MemoryPlan, plan_run
from inference.model.attention import resolve_backend
from inference.model.compiling import compile_layers
from inference.model.dit import VideoDiT
from inference.model.finite import reasons, require_finite
from inference.model.fp8 import DEQUANTISE, resolve_fp8_matmul
from inference.model.fused import resolve_kernels
from inference.model.weights import check_weights, checkpoint_directory, load_weights
from inference.noise import draw_noise, sample_seed
from inference.parallel.group import ALONE, ContextParallel
from inference.parallel.launch import check_ranks
from inference.placement.residency import free_bytes, place
from inference.record import RunRecord
from inference.reuse import Reuse
from inference.sampler import CleanChunk, Sampler, StepCallback, kv_geometry, make_schedule
from inference.schedule import Schedule
from inference.text.cache import CaptionFeatures
from inference.text.captions import ChunkCaptions, PromptFlags, SpecialTokens, assemble_captions
from inference.text.features import PromptEncoder, prompt_encoder
from inference.text.reading import PromptReading, read_prompt
from inference.video.codec import VaeCodec, check_vae, tiles_for
from inference.video.decode_ahead import decode_ahead, overlaps
from inference.video.reading import select_prefix_frames
from inference.video.vae import load_vae

logger = logging.getLogger(__name__)

CacheFactory = Callable[..., KVCache]


@dataclass(frozen=True)
class Sample:
    """One video to make.

    ``identity`` names it among the samples of a run: with the base seed it determines the noise, and nothing else
    does. ``prefix``: uint8 frames (T, H, W, 3) at the configured size and rate, one for an image; None for text
    alone.
    """

    prompt: str
    prefix: Tensor | None = None
    identity: str = "0"


@dataclass
class RunReport:
    """What a run did and how long its stages took; filled while the frames are drawn.

    ``text_from_cache``: whether the caption's features were read from the disk; ``prompt``: what was read of it. None
    before that is known.
    """

    record: RunRecord = field(default_factory=RunRecord)
    seconds: dict[str, float] = field(default_factory=dict)
    frames: int = 0
    kv_cache_bytes: int = 0
    text_from_cache: bool | None = None
    prompt: PromptReading | None = None

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of the block to ``stage``."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began


def prefix_latent_count(config: MagiConfig, frames: int) -> int:
    """Latent frames of a prefix of ``frames`` frames: one for an image, whole groups of four otherwise."""
    return 1 if frames == 1 else frames // config.runtime.temporal_downsample_factor


def plan(config: MagiConfig, prefix_frames: int) -> tuple[MagiConfig, Schedule]:
    """The configuration and the schedule that write exactly ``num_frames`` frames after (or with) the prefix.

    ``num_frames`` is rounded up to whole latents (docs/sampler.md, "Length of the video"). The chunk of a given image
    is part of the output, so its latent counts among them. ValueError for sizes that no memory holds.
    """
    refuse_too_large(config)
    factor = config.runtime.temporal_downsample_factor
    latents = -(-config.runtime.num_frames // factor)
    given = prefix_latent_count(config, prefix_frames) if prefix_frames else 0
    fresh = latents - 1 if given == 1 else latents
    sampled = config.with_overrides(num_frames=max(fresh, 1) * factor)
    return sampled, make_schedule(sampled, given)


def place_run(
    config: MagiConfig,
    device: torch.device,
    free: int | None,
    make_cache: CacheFactory = KVCache,
    ranks: int = 1,
) -> tuple[MagiConfig, MemoryPlan]:
    """``config`` with every "auto" of its memory decided for videos from text, and the plan (``plan_run``)."""
    planned, schedule = plan(config, 0)
    memory = plan_run(planned, schedule, device, free, make_cache, ranks)
    return config.with_overrides(**vars(memory.placement)), memory


class MagiPipeline:
    """The models of one configuration on one device.

    Args:
        config: the whole configuration; what it names is loaded.
        device: where the transformer and the VAE run; the text encoder follows ``t5_device`` where that exists.
        dit, vae, t5, tokens: the loaded models; ``load`` builds them from the configuration. Of several ranks only
            the first needs the text encoder ``t5``.
        parallel: the ranks that make videos together; each has a pipeline and makes the same calls.
        memory: what was decided about the device's memory; None on a CPU, where nothing is.
    """

    def __init__(
        self,
        config: MagiConfig,
        dit: VideoDiT,
        vae: VaeCodec,
        t5: PromptEncoder | None,
        tokens: SpecialTokens | None,
        device: torch.device,
        parallel: ContextParallel = ALONE,
        memory: MemoryPlan | None = None,
    ) -> None:
        self.config = config
        self.dit = dit
        self.vae = vae
        self.t5 = t5
        self.tokens = tokens
        self.device = device
        self.parallel = parallel
        self.memory = memory
        self.overlap = overlaps(config.engine.overlap_decode, device, parallel.ranks, vae.residency.offload)

    @classmethod
    def load(
        cls,
        config: MagiConfig,
        device: torch.device,
        parallel: ContextParallel = ALONE,
        make_cache: CacheFactory = KVCache,
    ) -> "MagiPipeline":
        """Load every model that ``config`` names; on a GPU what is "auto" about its memory is decided here.

        ``make_cache``, which the videos will use, tells how much room keys and values need.

        Raises:
            FileNotFoundError, ValueError, WeightsError: a path that does not exist, a file that is not what it should
                be, tensors that do not fit; before anything that takes long.
        """
        check_ranks(config, parallel.ranks)
        for warning in runtime_support_warnings(config, parallel.ranks):
            logger.warning(warning)
        memory = None
        if device.index is not None and device.type == "cuda":
            torch.cuda.set_device(device)  # for what takes no device: kernels of other packages, host memory
        if device.type == "cuda":
            config, memory = place_run(config, device, free_bytes(device), make_cache, parallel.ranks)
        else:
            check_host(*plan(config, 0), make_cache, parallel.ranks)
        runtime = config.runtime
        # All paths and headers first: what is missing should not show up after minutes of loading something else.
        weights = checkpoint_directory(config)
        vae_directory = require_path(runtime.vae_pretrained, "runtime_config.vae_pretrained")
        t5_directory = require_path(runtime.t5_pretrained, "runtime_config.t5_pretrained")
        tokens = load_special_tokens(config)
        dit = load_transformer(config, device)
        check_weights(dit, weights, name="transformer")
        # The VAE in the compute dtype on a GPU, as published; float32 on a CPU, where bfloat16 gains nothing.
        vae_dtype = config.model.dtype if device.type == "cuda" else torch.float32
        vae = load_vae(vae_directory, dtype=vae_dtype)
        check_vae(vae, vae_directory)
        residency = place("VAE", vae, device, config.engine.offload_vae)
        tiles = tiles_for(vae, runtime.fps, (runtime.video_size_h, runtime.video_size_w))
        codec = VaeCodec(vae, runtime.scale_factor, runtime.fps, tiles, parallel.map, residency)
        t5 = prompt_encoder(config, t5_directory, device) if parallel.is_first else None
        streamed = config.engine.stream_weights is True
        load_weights(dit, weights, device="cpu" if streamed else device, name="transformer")
        if streamed:
            dit.stream_layers(device)
        return cls(config, dit.eval(), codec, t5, tokens, device, parallel, memory)

    def frames(
        self,
        sample: Sample,
        *,
        reuse: Reuse | None = None,
        make_cache: CacheFactory = KVCache,
        on_step: StepCallback | None = None,
        report: RunReport | None = None,
    ) -> Iterator[Tensor]:
        """Make one video and yield its frames, uint8 (T, H, W, 3) on the CPU, a chunk at a time; ``num_frames`` in all.

        Args:
            sample: what to make.
            reuse: who decides and who advances; MAGI-1 itself by default.
            make_cache: called with the ``KVGeometry``; the plain cache by default.
            on_step: called after every step of the sampler.
            report: filled while frames are drawn.

        Raises:
            ValueError: the prefix does not fit the configuration, or the schedule does not fit the cache.
            RankLostError: another rank has ended; the frames yielded before are good.
            NotFiniteError: numbers are no numbers any more; the frames yielded before are good.
        """
        report = report if report is not None else RunReport()
        prefix = self._prefix_frames(sample)
        config, schedule = plan(self.config, 0 if prefix is None else len(prefix))
        with report.timed("text"):
            captions = self._captions(sample.prompt, schedule, report)
        latents = None
        if prefix is not None:
            with report.timed("encode_prefix"):
                latents = self.vae.encode_video(prefix).float().to(self.device)
                require_finite(latents, "encoding: latents of the given frames")
        noise = self._noise(sample, schedule)
        cache = make_cache(kv_geometry(config, self.device, self.parallel.ranks))
        sampler = Sampler(self.dit, config, cache, reuse, self.parallel)
        chunks = _clean_latents(sampler, sampler.run(noise, captions, latents, on_step), report)
        left = self.config.runtime.num_frames
        models = {"transformer": self.dit, "VAE": self.vae.vae}
        how = f"{str(self.dit.dtype).removeprefix('torch.')}, attention by {self.dit.backend}"
        with closing(self._decoded(chunks, report)) as parts, reasons(models, how):
            for part in parts:
                self.parallel.check()
                frames = part[:left]
                left -= len(frames)
                report.frames += len(frames)
                yield frames
                if left == 0:
                    break

    def placement(self) -> dict[str, str]:
        """Where text encoder and VAE lie and how chunks are decoded, in words for the sidecar."""
        encoder = None if self.t5 is None else self.t5.residency
        return {
            "t5": "not loaded" if encoder is None else encoder.describe(),
            "vae": self.vae.residency.describe(),
            "decode": "beside denoising" if self.overlap else "in turn",
        }

    def _decoded(self, chunks: Iterator[Tensor], report: RunReport) -> Iterator[Tensor]:
        """Frames of every chunk of latents, in order."""

        numbers = itertools.count()

        def decode(latents: Tensor) -> Tensor:
            with report.timed("decode"):
                return self.vae.decode_chunk(latents, name=f"frames of chunk {next(numbers)}")

        if self.overlap:
            yield from decode_ahead(chunks, decode, self.device)
        else:
            yield from map(decode, chunks)

    def _prefix_frames(self, sample: Sample) -> Tensor | None:
        """The frames of the prefix that take part, checked against the configured size."""
        if sample.prefix is None:
            return None
        runtime = self.config.runtime
        size = (runtime.video_size_h, runtime.video_size_w, 3)
        if tuple(sample.prefix.shape[1:]) != size or sample.prefix.dtype != torch.uint8:
            raise ValueError(
                f"prefix frames are {sample.prefix.dtype} {tuple(sample.prefix.shape)}; (T, {size[0]}, {size[1]}, 3)"
                " is needed for the configured video size"
            )
        return usable_prefix(self.config, sample.prefix)

    def _captions(self, prompt: str, schedule: Schedule, report: RunReport) -> ChunkCaptions:
        found = self.parallel.from_first(lambda: self._encode_prompt(prompt))
        require_finite(found.features, "text: features of the prompt")
        report.text_from_cache = found.from_cache
        report.prompt = read_prompt(prompt, found.unknown)
        for warning in report.prompt.warnings():
            logger.warning(warning)
        return assemble_captions(
            found.features.to(self.device),
            found.mask.to(self.device),
            self.dit.y_embedder.null_caption_embedding,
            self.tokens,
            prompt_flags(self.config),
            schedule.chunk_num,
            schedule.offset,
        )

    def _encode_prompt(self, prompt: str) -> CaptionFeatures:
        if self.t5 is None:
            raise RuntimeError("this pipeline has no text encoder; only the first of several ranks encodes prompts")
        return self.t5.encode(prompt)

    def _noise(self, sample: Sample, schedule: Schedule) -> Tensor:
        runtime = self.config.runtime
        shape = (
            self.config.model.latent_channels,
            runtime.chunk_width,
            runtime.video_size_h // 8,
            runtime.video_size_w // 8,
        )
        return draw_noise(sample_seed(runtime.seed, sample.identity), schedule.chunk_num, shape).to(self.device)


def _clean_latents(sampler: Sampler, chunks: Iterator[CleanChunk], report: RunReport) -> Iterator[Tensor]:
    """The latents of every clean chunk; the report is kept up to date."""
    while True:
        with report.timed("denoise"):
            chunk = next(chunks, None)
        report.record, report.kv_cache_bytes = sampler.record, sampler.cache.bytes
        if chunk is None:
            return
        yield chunk.latents


def usable_prefix(config: MagiConfig, frames: Tensor) -> Tensor:
    """The frames of a clip that continue into the video: chosen by ``prefix_selection``, then cut to whole latents.

    (docs/conditioning.md, "Prefix media") The rule "last" loses frames at the start, since the video has to go on
    from the clip's end; the rule "first" at the end, as in MAGI-1. Fewer frames than a latent has are one image, the
    last of them.
    """
    rule, factor = config.runtime.prefix_selection, config.runtime.temporal_downsample_factor
    chosen = select_prefix_frames(frames, config.runtime.fps, rule)
    whole = len(chosen) // factor * factor
    if whole == 0:
        return chosen[-1:]
    return chosen[-whole:] if rule == "last" else chosen[:whole]


def prompt_flags(config: MagiConfig) -> PromptFlags:
    """The special-token switches of a configuration."""
    runtime = config.runtime
    return PromptFlags(**{name: getattr(runtime, name) for name in PromptFlags.__dataclass_fields__})


def load_special_tokens(config: MagiConfig) -> SpecialTokens | None:
    """The special tokens, or None where no switch asks for them."""
    if not any(vars(prompt_flags(config)).values()):
        return None
    path = config.runtime.special_token_path
    if path is None:
        raise FileNotFoundError(
            "runtime_config.special_token_path is not set, but special tokens are switched on: point it at MAGI-1's "
            "special_tokens.npz, or set pad_hq and pad_duration to false"
        )
    return SpecialTokens.load(resolve_path(path), config.model.caption_channels)


def load_transformer(config: MagiConfig, device: torch.device) -> VideoDiT:
    """The transformer of a configuration on the meta device, ready for its weights."""
    backend = resolve_backend(config.engine.attention_backend, device, config.model.dtype, config.model.kv_channels)
    engine = config.engine
    matmul = resolve_fp8_matmul(engine.fp8_matmul, device) if engine.fp8_quant else DEQUANTISE
    kernels = resolve_kernels(engine.fused_kernels, device)
    with torch.device("meta"):
        dit = VideoDiT(
            config.model,
            distill=engine.distill,
            fp8=engine.fp8_quant,
            fp8_matmul=matmul,
            backend=backend,
            kernels=kernels,
        )
    return compile_layers(dit) if engine.compile else dit
