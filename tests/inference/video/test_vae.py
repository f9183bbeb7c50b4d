"""The autoencoder against reference data, against a plainly written transformer, and against bad input."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from inference.model.weights import WeightsError
from inference.video.vae import DiagonalGaussianPosterior, ViTVAE, load_vae, save_vae
from inference.video.vit_blocks import VitConfig, attention_norm
from tests.paths import GOLDEN

INDEX = json.loads((GOLDEN / "vae_small.json").read_text(encoding="utf-8"))
CASES = [(variant, case) for variant, entry in INDEX["variants"].items() for case in entry["cases"]]
TOLERANCE = 2e-5

# 2x2x2 patches of a 6x6 video of 4 frames: small enough for plain loops.
TINY = {
    "video_size": 6,
    "video_length": 4,
    "patch_size": 2,
    "patch_length": 2,
    "z_chans": 3,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 1.5,
    "conv_last_layer": True,
}
NATIVE, OTHER = (1, 3, 4, 6, 6), (2, 3, 6, 4, 8)


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "vae_small.safetensors")


def golden_vae(tensors: dict[str, torch.Tensor], variant: str) -> ViTVAE:
    entry = INDEX["variants"][variant]
    vae = ViTVAE(ddconfig=entry["ddconfig"], model_type=entry["model_type"])
    prefix = entry["state_dict_prefix"]
    vae.load_state_dict({k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)})
    return vae.eval().requires_grad_(False)


def tiny_vae(**options: object) -> ViTVAE:
    torch.manual_seed(0)
    vae = ViTVAE(ddconfig={**TINY, **options}).eval().requires_grad_(False)
    for parameter in vae.parameters():  # so that no bias is zero and no norm is neutral
        parameter.add_(0.2 * torch.randn_like(parameter))
    return vae


@pytest.mark.parametrize(("variant", "case"), CASES)
def test_reference_case(tensors: dict[str, torch.Tensor], variant: str, case: str) -> None:
    vae, prefix = golden_vae(tensors, variant), f"{variant}/{case}/"
    posterior = vae.encode(tensors[prefix + "video_u8"].float() / 127.5 - 1)
    decoded = vae.decode(tensors[prefix + "latent"])
    torch.testing.assert_close(posterior.mode(), tensors[prefix + "latent"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(decoded, tensors[prefix + "decoded"], atol=TOLERANCE, rtol=0)
    logvar = tensors[prefix + "moments"].chunk(2, dim=1)[1].clamp(-30, 20)
    torch.testing.assert_close(posterior.logvar, logvar, atol=TOLERANCE, rtol=0)


def test_bfloat16_stays_near_float32(tensors: dict[str, torch.Tensor]) -> None:
    vae = golden_vae(tensors, "proj_ln").bfloat16()
    video = tensors["proj_ln/native/video_u8"].float() / 127.5 - 1
    results = {"latent": vae.encode(video).mode(), "decoded": vae.decode(tensors["proj_ln/native/latent"])}
    for name, actual in results.items():
        exact = tensors[f"proj_ln/native/{name}"]
        assert actual.dtype == torch.bfloat16
        distance = (actual.float() - exact).norm() / exact.norm()
        assert 1e-4 < distance < 1e-2, f"{name}: {distance}"


# --- a plainly written transformer -------------------------------------------------------------------------------


def plain_norm(x: torch.Tensor) -> torch.Tensor:
    """The in-attention norm of one vector, with Python numbers."""
    values = x.tolist()
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return torch.tensor([(value - mean) / (deviation + 1e-5) for value in values])


def plain_attention(weights: dict[str, torch.Tensor], at: str, x: torch.Tensor, config: VitConfig) -> torch.Tensor:
    """Tokens (n, E), head by head and token by token."""
    qkv = F.linear(x, weights[at + "qkv.weight"], weights.get(at + "qkv.bias"))
    width = config.embed_dim // config.num_heads
    heads = []
    for head in range(config.num_heads):
        columns = [part * config.embed_dim + head * width for part in range(3)]
        q, k, v = (qkv[:, start : start + width] for start in columns)
        if config.ln_in_attn:
            q, k, v = (torch.stack([plain_norm(token) for token in part]) for part in (q, k, v))
        heads.append(torch.softmax(q @ k.T / math.sqrt(width), dim=-1) @ v)
    return F.linear(torch.cat(heads, dim=1), weights[at + "proj.weight"], weights[at + "proj.bias"])


def plain_positions(embedding: torch.Tensor, native: tuple[int, ...], grid: tuple[int, ...]) -> torch.Tensor:
    """Trilinear resizing of (native tokens, E), one axis after the other, without align_corners."""
    volume = embedding.reshape(*native, -1)
    for axis, (old, new) in enumerate(zip(native, grid, strict=True)):
        planes = []
        for place in range(new):
            source = max((place + 0.5) * old / new - 0.5, 0)
            low, high = int(source), min(int(source) + 1, old - 1)
            share = source - low
            planes.append(volume.select(axis, low) * (1 - share) + volume.select(axis, high) * share)
        volume = torch.stack(planes, dim=axis)
    return volume.reshape(-1, embedding.shape[-1])


def plain_transform(
    weights: dict[str, torch.Tensor], half: str, tokens: torch.Tensor, grid: tuple[int, ...], config: VitConfig
) -> torch.Tensor:
    """Tokens (n, E) through class token, positions, blocks and norm; the class token is dropped again."""
    extra = int(config.with_cls_token)
    positions = weights[f"{half}.pos_embed"][0]
    positions = torch.cat([positions[:extra], plain_positions(positions[extra:], config.native_grid, grid)])
    x = torch.cat([weights[f"{half}.cls_token"][0], tokens]) if extra else tokens
    x = x + positions

    def layer_norm(at: str, y: torch.Tensor) -> torch.Tensor:
        centred = y - y.mean(1, keepdim=True)
        scale = (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        return centred / scale * weights[at + ".weight"] + weights[at + ".bias"]

    for block in range(config.depth):
        at = f"{half}.blocks.{block}."
        normed = x if config.ln_in_attn else layer_norm(at + "norm1", x)
        x = x + plain_attention(weights, at + "attn.", normed, config)
        hidden = F.linear(layer_norm(at + "norm2", x), weights[at + "mlp.fc1.weight"], weights[at + "mlp.fc1.bias"])
        gelu = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + F.linear(gelu, weights[at + "mlp.fc2.weight"], weights[at + "mlp.fc2.bias"])
    return layer_norm(f"{half}.norm", x)[extra:]


def plain_moments(vae: ViTVAE, video: torch.Tensor) -> torch.Tensor:
    """(N, 3, T, H, W) -> (N, 2*z, t, h, w), one patch after the other."""
    weights, config = vae.state_dict(), vae.vit_config
    q, p = config.patch_length, config.patch_size
    grid = (video.shape[2] // q, video.shape[3] // p, video.shape[4] // p)
    kernel, bias = weights["encoder.patch_embed.proj.weight"], weights["encoder.patch_embed.proj.bias"]
    results = []
    for sample in video:
        places = [(t, h, w) for t in range(grid[0]) for h in range(grid[1]) for w in range(grid[2])]
        patches = [
            sample[:, t * q : (t + 1) * q, h * p : (h + 1) * p, w * p : (w + 1) * p].contiguous() for t, h, w in places
        ]
        tokens = torch.stack([(kernel * patch).sum(dim=(1, 2, 3, 4)) + bias for patch in patches])
        tokens = plain_transform(weights, "encoder", tokens, grid, config)
        moments = F.linear(tokens, weights["encoder.last_layer.weight"], weights["encoder.last_layer.bias"])
        if config.norm_code:
            moments = moments / moments.square().sum(1, keepdim=True).sqrt()
        results.append(moments.T.reshape(-1, *grid))
    return torch.stack(results)


def plain_decode(vae: ViTVAE, latents: torch.Tensor) -> torch.Tensor:
    """(N, z, t, h, w) -> (N, 3, T, H, W), one pixel of a patch after the other."""
    weights, config = vae.state_dict(), vae.vit_config
    grid, q, p = tuple(latents.shape[2:]), config.patch_length, config.patch_size
    results = []
    for sample in latents:
        tokens = F.linear(sample.flatten(1).T, weights["decoder.proj_in.weight"], weights["decoder.proj_in.bias"])
        tokens = plain_transform(weights, "decoder", tokens, grid, config)
        if config.use_final_proj:
            tokens = F.linear(tokens, weights["decoder.final_proj.weight"], weights["decoder.final_proj.bias"])
            norm = weights["decoder.final_norm.weight"], weights["decoder.final_norm.bias"]
            tokens = F.layer_norm(tokens, tokens.shape[1:], *norm)
        channels = tokens.shape[1] // (q * p * p)
        pixels = torch.empty(channels, grid[0] * q, grid[1] * p, grid[2] * p)
        for number, token in enumerate(tokens):
            t, rest = divmod(number, grid[1] * grid[2])
            h, w = divmod(rest, grid[2])
            for frame in range(q):
                for row in range(p):
                    for column in range(p):
                        start = ((frame * p + row) * p + column) * channels
                        pixels[:, t * q + frame, h * p + row, w * p + column] = token[start : start + channels]
        results.append(
            F.conv3d(pixels, weights["decoder.last_layer.weight"], weights["decoder.last_layer.bias"], padding=1)
        )
    return torch.stack(results)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"ln_in_attn": True, "qkv_bias": True}, OTHER),
        ({"ln_in_attn": True, "qkv_bias": True, "use_final_proj": True}, NATIVE),
        ({"qkv_bias": True}, OTHER),
        ({}, NATIVE),
        ({"with_cls_token": False, "ln_in_attn": True}, NATIVE),
        ({"norm_code": True}, OTHER),
    ],
    ids=lambda value: "-".join(value) or "defaults" if isinstance(value, dict) else "x".join(map(str, value)),
)
def test_equals_a_plainly_written_transformer(options: dict, shape: tuple[int, ...]) -> None:
    vae = tiny_vae(**options)
    video = torch.randn(shape)
    mean, logvar = plain_moments(vae, video).chunk(2, dim=1)
    posterior = vae.encode(video)
    torch.testing.assert_close(posterior.mean, mean, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(posterior.logvar, logvar, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(vae.decode(mean), plain_decode(vae, mean), atol=TOLERANCE, rtol=0)


# --- parts -------------------------------------------------------------------------------------------------------


def test_attention_norm_adds_its_epsilon_to_the_deviation() -> None:
    spreads = torch.tensor([0.0, 1e-6, 1e-5, 1e-3, 1.0, 1e3])
    rows = spreads[:, None] * (3 + torch.randn(6, 24, generator=torch.Generator().manual_seed(1)))
    expected = torch.stack([plain_norm(row) for row in rows])
    torch.testing.assert_close(attention_norm(rows), expected, atol=1e-5, rtol=1e-5)
    # A deviation equal to the epsilon is halved; an epsilon on the variance would leave almost nothing of it.
    two_values = torch.tensor([-1e-5, 1e-5])
    torch.testing.assert_close(attention_norm(two_values), torch.tensor([-0.5, 0.5]))


def test_attention_norm_has_a_finite_gradient_without_spread() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    attention_norm(x).square().sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("options", [{"ln_in_attn": True, "qkv_bias": True}, {"use_final_proj": True}])
def test_every_parameter_learns(options: dict) -> None:
    vae = tiny_vae(**options).train().requires_grad_(True)
    decoded = vae.decode(vae.encode(torch.randn(OTHER)).sample(torch.Generator().manual_seed(0)))
    decoded.square().mean().backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_one_frame_is_repeated_to_four_and_gives_one_latent() -> None:
    vae = tiny_vae()
    frame = torch.randn(1, 3, 1, 6, 6)
    repeated = vae.encode(frame.repeat(1, 1, 4, 1, 1)).mode()
    assert repeated.shape[2] == 2
    torch.testing.assert_close(vae.encode(frame).mode(), repeated[:, :, :1], atol=0, rtol=0)


def test_one_latent_is_an_image_unless_told_otherwise() -> None:
    vae = tiny_vae()
    latent = torch.randn(1, 3, 1, 3, 3)
    whole = vae.decode(latent, one_latent_is_image=False)
    assert whole.shape == (1, 3, 2, 6, 6)
    torch.testing.assert_close(vae.decode(latent), whole[:, :, :1], atol=0, rtol=0)
    assert vae.decode(torch.randn(1, 3, 2, 3, 3)).shape[2] == 4


def test_incomplete_patches_are_dropped() -> None:
    vae = tiny_vae()
    video = torch.randn(1, 3, 5, 7, 9)
    torch.testing.assert_close(vae.encode(video).mode(), vae.encode(video[:, :, :4, :6, :8]).mode(), atol=0, rtol=0)


def test_posterior_samples_with_noise_from_the_cpu_in_float32() -> None:
    moments = torch.randn(2, 6, 2, 3, 3)
    moments[0, 3, 0, 0, 0], moments[0, 4, 0, 0, 0] = 99, -99
    posterior = DiagonalGaussianPosterior(moments)
    assert posterior.logvar.max() == 20 and posterior.logvar.min() == -30
    noise = torch.randn(2, 3, 2, 3, 3, generator=torch.Generator().manual_seed(5))
    expected = moments[:, :3] + torch.exp(posterior.logvar / 2) * noise
    torch.testing.assert_close(posterior.sample(torch.Generator().manual_seed(5)), expected)
    low = DiagonalGaussianPosterior(moments.bfloat16())
    sampled = low.sample(torch.Generator().manual_seed(5))
    assert sampled.dtype == torch.bfloat16
    torch.testing.assert_close(sampled, low.mean + low.std * noise.bfloat16())
    assert torch.equal(posterior.mode(), moments[:, :3])


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"use_rope": True}, "use_rope"),
        ({"conv_last_layer": False}, "conv_last_layer"),
        ({"double_z": False}, "double_z"),
        ({"attn_drop_rate": 0.1}, "attn_drop_rate=0.1"),
        ({"embed_dim": 20}, "embed_dim=20.*2\\*2\\*2=8"),
        ({"num_heads": 3}, "embed_dim=16.*num_heads=3"),
        ({"patch_size": 0}, "'patch_size': 0"),
        ({"video_length": 1}, "'video_length': 1"),
        ({"depth": "2"}, "depth.*int.*'2'"),
        ({"depth": True}, "depth.*int.*True"),
        ({"ln_in_attn": 1}, "ln_in_attn.*bool.*1"),
        ({"widht": 3}, "unknown keys \\['widht'\\]"),
    ],
)
def test_configurations_that_cannot_work_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ViTVAE(ddconfig={**TINY, **options})


def test_other_model_types_are_refused() -> None:
    with pytest.raises(ValueError, match="vit_ncthw"):
        ViTVAE(ddconfig=TINY, model_type="vit_ncthw")


@pytest.mark.parametrize("frames", [2, 3])
def test_two_or_three_frames_are_refused(tensors: dict[str, torch.Tensor], frames: int) -> None:
    with pytest.raises(ValueError, match=f"at least 4 frames.*got {frames} frames"):
        golden_vae(tensors, "proj_ln").encode(torch.zeros(1, 3, frames, 48, 48))


def test_shapes_that_do_not_fit_are_refused() -> None:
    vae = tiny_vae()
    with pytest.raises(ValueError, match="1x6"):
        vae.encode(torch.zeros(1, 3, 4, 1, 6))
    with pytest.raises(ValueError, match="\\(1, 4, 4, 6, 6\\)"):
        vae.encode(torch.zeros(1, 4, 4, 6, 6))
    with pytest.raises(ValueError, match="\\(N, 3, t, h, w\\)"):
        vae.decode(torch.zeros(1, 2, 2, 3, 3))
    with pytest.raises(ValueError, match="non-empty"):
        vae.decode(torch.zeros(1, 3, 0, 3, 3))
    # Four frames, to which an image is repeated, do not fill a patch of eight.
    with pytest.raises(ValueError, match="got 4 frames"):
        ViTVAE(ddconfig={**TINY, "patch_length": 8, "video_length": 8, "embed_dim": 32}).encode(
            torch.zeros(1, 3, 1, 6, 6)
        )


def test_without_class_token_only_the_native_size_works() -> None:
    vae = tiny_vae(with_cls_token=False)
    assert vae.encode(torch.zeros(NATIVE)).mode().shape == (1, 3, 2, 3, 3)
    with pytest.raises(ValueError, match=r"native size only.*\(2, 3, 3\).*\(3, 2, 4\)"):
        vae.encode(torch.zeros(OTHER))


# --- folders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_size", ["1GB", "3KB"])
def test_a_saved_folder_loads_again(tmp_path: Path, shard_size: str) -> None:
    vae = tiny_vae(ln_in_attn=True)
    save_vae(vae, tmp_path, {**TINY, "ln_in_attn": True}, shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_size == "3KB")
    loaded = load_vae(tmp_path)
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    video = torch.randn(NATIVE)
    torch.testing.assert_close(loaded.encode(video).mode(), vae.encode(video).mode(), atol=0, rtol=0)
    assert load_vae(tmp_path, dtype=torch.bfloat16).decode(torch.zeros(1, 3, 2, 3, 3)).dtype == torch.bfloat16


def test_all_wrong_tensors_are_named_at_once(tmp_path: Path) -> None:
    save_vae(tiny_vae(), tmp_path, TINY)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["encoder.cls_token"]
    weights["decoder.extra"] = torch.zeros(2)
    weights["decoder.norm.bias"] = torch.zeros(7)
    save_file(weights, file)
    with pytest.raises(WeightsError) as caught:
        load_vae(tmp_path)
    for name in ("encoder.cls_token", "decoder.extra", "decoder.norm.bias"):
        assert name in str(caught.value)


def test_folders_that_hold_no_vae_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_vae(tmp_path)
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON"):
        load_vae(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}', encoding="utf-8")
    with pytest.raises(ValueError, match="ddconfig"):
        load_vae(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"ddconfig": TINY}), encoding="utf-8")
    torch.save(tiny_vae().state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(WeightsError, match="can run any code"):
        load_vae(tmp_path)
