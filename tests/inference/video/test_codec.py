"""Frames in, latents out and back: ranges, scale, tiles, and exact frame counts."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from inference.video.codec import VaeCodec, from_uint8, tiles_for, to_uint8
from inference.video.tiling import UNTILED, TileSpec
from inference.video.vae import ViTVAE
from tests.paths import GOLDEN

SCALE = 0.18215


def small_vae(**options: object) -> ViTVAE:
    torch.manual_seed(0)
    ddconfig = {
        "video_size": 32,
        "video_length": 16,
        "z_chans": 4,
        "embed_dim": 32,
        "depth": 1,
        "num_heads": 2,
        "mlp_ratio": 1.0,
        "ln_in_attn": True,
        "use_final_proj": True,
        "conv_last_layer": True,
    }
    return ViTVAE(ddconfig={**ddconfig, **options}).eval()


@pytest.fixture(scope="module")
def vae() -> ViTVAE:
    return small_vae()


@pytest.fixture(scope="module")
def codec(vae: ViTVAE) -> VaeCodec:
    return VaeCodec(vae, scale_factor=SCALE, fps=24)


def clip(frames: int, height: int = 16, width: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8, generator=generator)


def test_uint8_tables_of_the_reference() -> None:
    tables = load_file(GOLDEN / "misc.safetensors")
    for kind in ("f32", "bf16"):
        assert torch.equal(to_uint8(tables[f"uint8/{kind}_in"]), tables[f"uint8/{kind}_out"])
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(from_uint8(pixels), tables["input/f32"])
    assert torch.equal(from_uint8(pixels).bfloat16(), tables["input/bf16"])


def test_uint8_truncates_and_clamps() -> None:
    # 0.9999 gives 254.99, which rounding would make 255.
    assert to_uint8(torch.tensor([-5.0, -1.0, 0.0, 0.9999, 1.0, 7.0])).tolist() == [0, 0, 127, 254, 255, 255]


@pytest.mark.parametrize("latents", range(1, 14))
def test_every_chunk_gives_exactly_four_frames_per_latent(codec: VaeCodec, latents: int) -> None:
    assert codec.decode_chunk(torch.randn(1, 4, latents, 2, 3)).shape == (4 * latents, 16, 24, 3)


def test_a_rest_of_one_latent_is_decoded_as_video(codec: VaeCodec, vae: ViTVAE) -> None:
    latents = torch.randn(1, 4, 4, 2, 3, generator=torch.Generator().manual_seed(1))
    frames = codec.decode_chunk(latents)
    with torch.no_grad():
        parts = [
            vae.decode(latents[:, :, :3] / SCALE),
            vae.decode(latents[:, :, 3:] / SCALE, one_latent_is_image=False),
        ]
    expected = to_uint8(torch.cat(parts, dim=2))[0].permute(1, 2, 3, 0)
    assert torch.equal(frames, expected)


def test_an_image_gives_one_frame(codec: VaeCodec) -> None:
    latent = torch.randn(1, 4, 1, 2, 3, generator=torch.Generator().manual_seed(2))
    image = codec.decode_chunk(latent, image=True)
    assert image.dtype == torch.uint8 and image.shape == (1, 16, 24, 3)
    assert torch.equal(image, codec.decode_chunk(latent)[:1])
    with pytest.raises(ValueError, match="got 2"):
        codec.decode_chunk(torch.zeros(1, 4, 2, 2, 3), image=True)


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (4, 1), (8, 2), (12, 3), (13, 4), (16, 4), (25, 7), (32, 8)])
def test_frame_counts_that_work(codec: VaeCodec, frames: int, latents: int) -> None:
    encoded = codec.encode_video(clip(frames))
    assert encoded.shape == (1, 4, latents, 2, 3)
    assert not encoded.requires_grad
    if frames % 4 == 0:
        assert codec.decode_chunk(encoded).shape == (frames, 16, 24, 3)


@pytest.mark.parametrize(
    ("frames", "hint"), [(0, "1 or 4"), (2, "1 or 4"), (3, "1 or 4"), (14, "12 or 16"), (17, "16 or 20")]
)
def test_frame_counts_that_do_not_work_are_refused(codec: VaeCodec, frames: int, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"cannot encode {frames} frames.*multiple of 4.*12 frames; use {hint}"):
        codec.encode_video(clip(frames))


def test_latents_are_the_scaled_mode(codec: VaeCodec, vae: ViTVAE) -> None:
    frames = clip(12)
    video = (frames.permute(3, 0, 1, 2)[None].float()) / 127.5 - 1
    with torch.no_grad():
        expected = vae.encode(video).mode() * SCALE
    torch.testing.assert_close(codec.encode_video(frames), expected)
    torch.testing.assert_close(codec.encode_video(frames.numpy()), expected)
    assert torch.equal(codec.encode_video(frames), codec.encode_video(frames)), "no noise may be drawn"


def test_frames_larger_than_a_tile(codec: VaeCodec, vae: ViTVAE) -> None:
    frames = clip(16, height=56, width=80)
    encoded = codec.encode_video(frames)
    assert encoded.shape == (1, 4, 4, 7, 10)
    assert codec.decode_chunk(encoded).shape == frames.shape
    untiled = VaeCodec(vae, SCALE, fps=24, tiles=TileSpec(16, UNTILED, UNTILED)).encode_video(frames)
    assert (encoded - untiled).abs().max() > 1e-4, "tiles must see no further than themselves"


def test_bfloat16_latents_are_scaled_in_bfloat16() -> None:
    codec = VaeCodec(small_vae().bfloat16(), SCALE, fps=24)
    encoded = codec.encode_video(clip(8))
    assert encoded.dtype == torch.bfloat16
    assert codec.decode_chunk(encoded.float()).dtype == torch.uint8


@pytest.mark.parametrize(
    ("video_size", "fps", "side", "length"),
    [(256, 24, 256, 12), (512, 24, 256, 12), (256, 8, 256, 4), (256, 30, 256, 12), (64, 4, 64, 4), (48, 16, 32, 8)],
)
def test_tiles(video_size: int, fps: int, side: int, length: int) -> None:
    tiles = tiles_for(small_vae(video_size=video_size), fps)
    assert tiles == TileSpec(length, side, side, spatial_overlap=0.25, temporal_overlap=0.0)


def test_bad_arguments_are_refused(codec: VaeCodec, vae: ViTVAE) -> None:
    with pytest.raises(ValueError, match=r"fps.*0"):
        VaeCodec(vae, SCALE, fps=0)
    with pytest.raises(ValueError, match=r"scale_factor.*-1"):
        VaeCodec(vae, -1, fps=24)
    with pytest.raises(ValueError, match="height tile 48 with stride 36"):
        VaeCodec(vae, SCALE, fps=24, tiles=TileSpec(12, 48, 64))
    with pytest.raises(ValueError, match=r"18x24.*multiples of 8"):
        codec.encode_video(clip(4, height=18))
    with pytest.raises(ValueError, match=r"float32 \(4, 16, 24, 3\)"):
        codec.encode_video(clip(4).float())
    with pytest.raises(ValueError, match=r"\(4, 3, 16, 24\)"):
        codec.encode_video(np.zeros((4, 3, 16, 24), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"\(2, 4, 3, 2, 3\)"):
        codec.decode_chunk(torch.zeros(2, 4, 3, 2, 3))
