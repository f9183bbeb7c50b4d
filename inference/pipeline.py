"""Prompt (and image or video) to frames: the models of a run, loaded once, and the way through them.

    text -> caption features          prefix frames -> latents
                      \\               /
                       sampler: clean chunks, one after the other
                                  |
                        VAE, frame by frame to the caller

A ``MagiPipeline`` keeps models only. What belongs to one video (noise, caches, records) is made per call and is a
``Session``, so a second video in a process equals the first one in a fresh process.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial

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
from inference.noise import DrawnNoise, sample_seed
from inference.parallel.group import ALONE, ContextParallel
from inference.parallel.launch import check_ranks
from inference.placement.residency import free_bytes, place
from inference.reuse import Reuse
from inference.sampler import PredictionCallback, Sampler, StepCallback, kv_geometry, make_schedule
from inference.schedule import Schedule
from inference.session.prompts import PromptTrack
from inference.session.report import RunReport, Sample
from inference.session.session import Session
from inference.text.cache import CaptionFeatures
from inference.text.captions import ChunkCaptions, PromptFlags, SpecialTokens, assemble_captions
from inference.text.features import PromptEncoder, prompt_encoder
from inference.text.reading import read_prompt
from inference.video.codec import VaeCodec, check_vae, tiles_for
from inference.video.decode_ahead import overlaps
from inference.video.reading import select_prefix_frames
from inference.video.vae import load_vae

logger = logging.getLogger(__name__)

CacheFactory = Callable[..., KVCache]
# Called with a chunk's number, its noise level and a picture (H, W, 3) uint8.
PreviewCallback = Callable[[int, float, Tensor], None]


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
        runtime = config.runtime
        # All paths and headers first: what is missing should not show up after minutes of loading something else, nor
        # as the memory that models of unknown size may need.
        weights = checkpoint_directory(config)
        vae_directory = require_path(runtime.vae_pretrained, "runtime_config.vae_pretrained")
        t5_directory = require_path(runtime.t5_pretrained, "runtime_config.t5_pretrained")
        memory = None
        if device.index is not None and device.type == "cuda":
            torch.cuda.set_device(device)  # for what takes no device: kernels of other packages, host memory
        if device.type == "cuda":
            config, memory = place_run(config, device, free_bytes(device), make_cache, parallel.ranks)
        else:
            check_host(*plan(config, 0), make_cache, parallel.ranks)
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

        Arguments and errors are those of ``session``, whose chunks these are.
        """
        session = self.session(sample, reuse=reuse, make_cache=make_cache, on_step=on_step, report=report)
        with closing(iter(session)) as chunks:
            for chunk in chunks:
                yield chunk.frames

    def with_config(self, config: MagiConfig) -> "MagiPipeline":
        """The same models with other settings of the videos; those of the models are as they were loaded."""
        return MagiPipeline(config, self.dit, self.vae, self.t5, self.tokens, self.device, self.parallel, self.memory)

    def session(
        self,
        sample: Sample,
        *,
        reuse: Reuse | None = None,
        make_cache: CacheFactory = KVCache,
        on_step: StepCallback | None = None,
        on_preview: PreviewCallback | None = None,
        report: RunReport | None = None,
    ) -> Session:
        """A video to be made, chunk by chunk, by iterating over what is returned.

        Args:
            sample: what to make.
            reuse: who decides and who advances; MAGI-1 itself by default.
            make_cache: called with the ``KVGeometry``; the plain cache by default.
            on_step: called after every step of the sampler.
            on_preview: called while the first chunk is made: with its number, its noise level, and what its first
                frame is expected to become, uint8 (H, W, 3). It takes decoding of one latent frame each time; of
                several ranks none is made.
            report: filled while chunks are drawn.

        Raises:
            ValueError: the prefix does not fit the configuration; while chunks are drawn, the schedule does not fit
                the cache.
            RankLostError: while chunks are drawn, another rank has ended; the chunks before are good.
            NotFiniteError: numbers are no numbers any more; the chunks before are good.
        """
        report = report if report is not None else RunReport()
        prefix = self._prefix_frames(sample)
        config, schedule = plan(self.config, 0 if prefix is None else len(prefix))
        cache = make_cache(kv_geometry(config, self.device, self.parallel.ranks))
        prompts = PromptTrack(
            sample.prompt,
            sample.later,
            partial(self._features, report=report),
            partial(self._assemble, schedule=schedule),
            schedule.offset,
        )
        models = {"transformer": self.dit, "VAE": self.vae.vae}
        how = f"{str(self.dit.dtype).removeprefix('torch.')}, attention by {self.dit.backend}"
        return Session(
            Sampler(self.dit, config, cache, reuse, self.parallel),
            prompts,
            self._noise(sample),
            encode_prompt=self._encode_prompt,
            encode_prefix=partial(self._encode_prefix, prefix, report),
            decode=lambda latents, name: self.vae.decode_chunk(latents, name=name),
            explain=lambda: reasons(models, how),
            overlap=self.overlap,
            frames=self.config.runtime.num_frames,
            parallel=self.parallel,
            report=report,
            on_step=on_step,
            on_prediction=None if on_preview is None or self.parallel.ranks > 1 else self._preview(on_preview),
        )

    def _preview(self, on_preview: PreviewCallback) -> PredictionCallback:
        """One picture of what the first chunk is expected to become, as often as its noise level has fallen by an
        eighth of its way.
        """
        shown = 0.0

        def decode(chunk: int, level: float, expected: Tensor) -> None:
            nonlocal shown
            if chunk == 0 and level >= shown:
                shown = level + 1 / 8
                frames = self.vae.decode_chunk(expected[:, :, :1], name="a preview")
                on_preview(chunk, level, frames[0])

        return decode

    def placement(self) -> dict[str, str]:
        """Where text encoder and VAE lie and how chunks are decoded, in words for the sidecar."""
        encoder = None if self.t5 is None else self.t5.residency
        return {
            "t5": "not loaded" if encoder is None else encoder.describe(),
            "vae": self.vae.residency.describe(),
            "decode": "beside denoising" if self.overlap else "in turn",
        }

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

    def _encode_prefix(self, prefix: Tensor | None, report: RunReport) -> Tensor | None:
        if prefix is None:
            return None
        with report.timed("encode_prefix"):
            latents = self.vae.encode_video(prefix).float().to(self.device)
            require_finite(latents, "encoding: latents of the given frames")
        return latents

    def _features(self, prompt: str, report: RunReport) -> CaptionFeatures:
        """Features of a prompt on every rank; what was read of the first one is reported, of all what was lost."""
        found = self.parallel.from_first(lambda: self._encode_prompt(prompt))
        reading = read_prompt(prompt, found.unknown)
        if report.prompt is None:
            report.text_from_cache, report.prompt = found.from_cache, reading
        for warning in reading.warnings():
            logger.warning(warning)
        return found

    def _assemble(self, found: CaptionFeatures, schedule: Schedule) -> ChunkCaptions:
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
        found = self.t5.encode(prompt)
        require_finite(found.features, "text: features of the prompt")
        return found

    def _noise(self, sample: Sample) -> DrawnNoise:
        runtime = self.config.runtime
        shape = (
            self.config.model.latent_channels,
            runtime.chunk_width,
            runtime.video_size_h // 8,
            runtime.video_size_w // 8,
        )
        return DrawnNoise(sample_seed(runtime.seed, sample.identity), shape, self.device)


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
