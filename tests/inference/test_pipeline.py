"""Whole videos through the pipeline, from prompt to frames: exact promises, and models that do not belong together."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import inference.text.features
from flowcache.config import FlowCacheConfig
from flowcache.kv_cache import CompressedKVCache
from harness.methods import make_reuse
from inference.config import load_config
from inference.model.weights import WeightsError
from inference.noise import draw_noise, sample_seed
from inference.pipeline import MagiPipeline, RunReport, Sample, usable_prefix
from tests.tiny_checkpoint import VAE, write_t5, write_vae

FRAMES = 156  # seven chunks, the last one cut: the cache of five is compressed
REUSING = FlowCacheConfig(
    rel_l1_thresh=1.0, compress_kv_cache=True, discard_nearly_clean_chunk=True, reuse_form="linear"
)


@pytest.fixture(scope="module", params=["distill", "base"])
def pipeline(request: pytest.FixtureRequest, checkpoint: Path) -> MagiPipeline:
    config = load_config(checkpoint / f"{request.param}.json").with_overrides(num_frames=FRAMES)
    return MagiPipeline.load(config, torch.device("cpu"))


def prefix_frames(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 255, (count, 32, 48, 3), dtype=torch.uint8, generator=generator)


A = Sample("a cat on a mat", prefix_frames(24), identity="a")
B = Sample("the dog runs", identity="b")


def make(pipeline: MagiPipeline, sample: Sample, flowcache: FlowCacheConfig | None = None, **given: Any) -> Tensor:
    """All frames of ``sample``, with FlowCache where its settings are given."""
    options = given
    if flowcache is not None:
        caches = {"make_cache": partial(CompressedKVCache, config=flowcache)} if flowcache.compress_kv_cache else {}
        options = {"reuse": make_reuse(flowcache), **caches, **given}
    return torch.cat(list(pipeline.frames(sample, **options)))


@pytest.mark.slow
def test_a_second_video_equals_a_fresh_process(pipeline: MagiPipeline, checkpoint: Path) -> None:
    reuse, caches, report = make_reuse(REUSING), [], RunReport()

    def one_cache(geometry: Any) -> CompressedKVCache:
        caches.append(caches[0] if caches else CompressedKVCache(geometry, REUSING))
        return caches[0]

    make(pipeline, A, reuse=reuse, make_cache=one_cache)
    second = make(pipeline, B, reuse=reuse, make_cache=one_cache, report=report)
    assert report.record.reused > 0 and report.record.compactions > 0 and len(caches) == 2
    fresh = MagiPipeline.load(pipeline.config, torch.device("cpu"))
    assert torch.equal(second, make(fresh, B, REUSING))


@pytest.mark.slow
def test_threshold_zero_is_no_caching(pipeline: MagiPipeline) -> None:
    neutral = FlowCacheConfig(rel_l1_thresh=0, clean_pass=True, discard_nearly_clean_chunk=False)
    for sample in (A, B):
        plain = make(pipeline, sample)
        assert len(plain) == FRAMES and torch.equal(plain, make(pipeline, sample, neutral))
    assert not torch.equal(plain, make(pipeline, B, REUSING))


@pytest.mark.slow
def test_a_budget_of_the_whole_video_is_no_compression(pipeline: MagiPipeline) -> None:
    enough, report = REUSING.model_copy(update={"total_cache_chunk_nums": 8}), RunReport()
    without = REUSING.model_copy(update={"compress_kv_cache": False})
    for sample in (A, B):  # eight chunks and seven
        assert torch.equal(make(pipeline, sample, enough, report=report), make(pipeline, sample, without))
    assert report.record.compactions == 0 and report.record.reused > 0
    assert not torch.equal(make(pipeline, B, REUSING), make(pipeline, B, without))


def test_the_report_is_filled_while_frames_are_drawn(pipeline: MagiPipeline) -> None:
    report, steps = RunReport(), []
    frames = pipeline.frames(B, on_step=steps.append, report=report)
    assert len(next(frames)) == report.frames == 24 and len(steps) == len(report.record.steps) == 8
    assert sum(len(part) for part in frames) == FRAMES - 24 and report.frames == FRAMES
    assert len(steps) == 20 and {"text", "denoise", "decode"} == set(report.seconds)


def test_prompt_and_identity_and_seed_matter(pipeline: MagiPipeline) -> None:
    short = MagiPipeline(
        pipeline.config.with_overrides(num_frames=4),
        *(pipeline.dit, pipeline.vae, pipeline.t5, pipeline.tokens, pipeline.device),
    )
    first = make(short, B)
    assert torch.equal(first, make(short, B)) and len(first) == 4
    assert not torch.equal(first, make(short, Sample("a cat on a mat", identity="b")))
    assert not torch.equal(first, make(short, Sample(B.prompt, identity="c")))
    short.config = short.config.with_overrides(seed=99)
    assert not torch.equal(first, make(short, B))


def test_noise_depends_on_seed_and_sample_alone() -> None:
    seeds = {sample_seed(base, identity) for base in (0, 1, 12) for identity in ("0", "1", "2/0", "")}
    assert len(seeds) == 12 and all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed(1234, "0") == 5434455650403571497  # changing it would change every published video
    noise = draw_noise(7, 3, (16, 6, 4, 6))
    torch.rand(5)  # the global generator has no part in it
    assert noise.shape == (1, 16, 18, 4, 6) and torch.equal(noise, draw_noise(7, 3, (16, 6, 4, 6)))
    assert torch.equal(noise, draw_noise(7, 5, (16, 6, 4, 6))[:, :, :18])
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    assert not torch.equal(noise[:, :, :6], noise[:, :, 6:12])


@pytest.mark.parametrize(
    ("rule", "fps", "count", "kept"),
    [
        ("last", 24, 60, (12, 60)),  # two whole seconds
        ("last", 24, 200, (80, 200)),  # five seconds
        ("last", 25, 60, (12, 60)),  # 50 frames, of which 48 are whole latents: the end of the clip stays
        ("last", 24, 20, (19, 20)),  # under a second: an image
        ("first", 24, 60, (0, 32)),
        ("first", 24, 30, (0, 28)),
        ("first", 24, 3, (2, 3)),
        ("first", 24, 1, (0, 1)),
    ],
)
def test_frames_of_a_clip_that_take_part(
    checkpoint: Path, rule: str, fps: int, count: int, kept: tuple[int, int]
) -> None:
    config = load_config(checkpoint / "distill.json").with_overrides(prefix_selection=rule, fps=fps)
    clip = torch.arange(count)[:, None, None, None]
    assert usable_prefix(config, clip).flatten().tolist() == list(range(*kept))


def test_frames_of_another_size_are_refused(pipeline: MagiPipeline) -> None:
    with pytest.raises(ValueError, match=r"prefix frames are torch\.uint8 \(24, 48, 32, 3\); \(T, 32, 48, 3\)"):
        next(pipeline.frames(Sample("a", prefix_frames(24).transpose(1, 2))))
    with pytest.raises(ValueError, match=r"prefix frames are torch\.float32"):
        next(pipeline.frames(Sample("a", prefix_frames(24).float())))


def load(root: Path) -> MagiPipeline:
    return MagiPipeline.load(load_config(root / "distill.json"), torch.device("cpu"))


def test_a_vae_of_other_latents_is_refused(checkpoint_copy: Path) -> None:
    shutil.rmtree(checkpoint_copy / "vae")
    write_vae(checkpoint_copy / "vae", VAE | {"z_chans": 4})
    with pytest.raises(ValueError, match=r"patch_size \(4, 4, 8\); the transformer needs \(16, 4, 8\)"):
        load(checkpoint_copy)


def test_a_text_encoder_of_another_width_is_refused(checkpoint_copy: Path) -> None:
    shutil.rmtree(checkpoint_copy / "t5")
    write_t5(checkpoint_copy / "t5" / "t5-v1_1-xxl", 16)
    with pytest.raises(ValueError, match="gives features of 16 numbers, but the transformer takes caption_channels 24"):
        load(checkpoint_copy)


def test_the_transformer_is_checked_before_anything_long_is_loaded(
    checkpoint_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference.text.features, "load_t5", lambda *_, **__: pytest.fail("the text encoder was loaded"))
    path = checkpoint_copy / "distill.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model_config"]["num_layers"] = 3
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(WeightsError, match=r"missing:\n +videodit_blocks\.layers\.2\."):
        load(checkpoint_copy)


def test_special_tokens_are_needed_where_they_are_switched_on(checkpoint_copy: Path) -> None:
    config = load_config(checkpoint_copy / "distill.json").with_overrides(special_token_path=None)
    with pytest.raises(FileNotFoundError, match="special_token_path is not set, but special tokens are switched on"):
        MagiPipeline.load(config, torch.device("cpu"))
    off = config.with_overrides(pad_hq=False, pad_duration=False, num_frames=4)
    assert len(make(MagiPipeline.load(off, torch.device("cpu")), B)) == 4
