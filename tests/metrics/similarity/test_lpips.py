"""LPIPS with random weights: against the formula written out, and what is said where it cannot be computed."""

import builtins
import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import AlexNet_Weights

from metrics.similarity.lpips_distance import LpipsDistance, LpipsUnavailable, load_lpips
from metrics.similarity.measures import compare
from tests.metrics.clips import moving, noise

# Channels in and out, kernel, stride and padding of AlexNet's convolutions by their place in `features`.
CONVOLUTIONS = {
    0: (3, 64, 11, 4, 2),
    3: (64, 192, 5, 1, 2),
    6: (192, 384, 3, 1, 1),
    8: (384, 256, 3, 1, 1),
    10: (256, 256, 3, 1, 1),
}


def random_backbone() -> dict[str, Tensor]:
    """Named tensors as torchvision's AlexNet has them, of its classifier the last bias only."""
    generator = torch.Generator().manual_seed(5)
    state = {"classifier.6.bias": torch.zeros(1000)}
    for place, (fan_in, out, kernel, _, _) in CONVOLUTIONS.items():
        scale = (fan_in * kernel**2 / 2) ** -0.5
        state[f"features.{place}.weight"] = torch.randn(out, fan_in, kernel, kernel, generator=generator) * scale
        state[f"features.{place}.bias"] = torch.randn(out, generator=generator) * 0.1
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lpips") / "alexnet.pth"
    torch.save(random_backbone(), path)
    return path


@pytest.fixture(scope="module")
def network(weights: Path) -> LpipsDistance:
    return load_lpips(weights)


def written_out(lpips: LpipsDistance, a: Tensor, b: Tensor) -> float:
    """LPIPS of two frames uint8 (H, W, 3) from the paper's formula; only the last weights are the library's."""
    state = {name: tensor.double() for name, tensor in random_backbone().items()}
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]).double(), torch.tensor([0.458, 0.448, 0.450]).double()
    last = dict(lpips.network.named_parameters())

    def features(frame: Tensor) -> list[Tensor]:
        x = (((frame.double() / 255 * 2 - 1) - shift) / scale).permute(2, 0, 1)[None]
        found = []
        for place, (_, _, _, stride, padding) in CONVOLUTIONS.items():
            if place in (3, 6):
                x = F.max_pool2d(x, 3, 2)
            x = F.conv2d(x, state[f"features.{place}.weight"], state[f"features.{place}.bias"], stride, padding).relu()
            found.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return found

    total = torch.zeros(a.shape[:2], dtype=torch.float64)
    for level, (x, y) in enumerate(zip(features(a), features(b), strict=True)):
        weight = last[f"lin{level}.model.1.weight"].double()
        spatial = ((x - y).square() * weight).sum(dim=1, keepdim=True)
        total += F.interpolate(spatial, size=a.shape[:2], mode="bilinear", align_corners=False)[0, 0]
    return total.mean().item()


def test_it_is_the_formula_with_the_given_backbone(network: LpipsDistance) -> None:
    a, b = moving(3, 64, 80), noise(3, 64, 80)
    values = network(a, b)
    expected = [written_out(network, x, y) for x, y in zip(a, b, strict=True)]
    assert min(expected) > 0.01
    assert values == pytest.approx(expected, rel=1e-4)
    assert network(a, a) == pytest.approx([0.0] * 3, abs=1e-7)


def test_frames_and_batches(network: LpipsDistance, weights: Path) -> None:
    a, b = moving(7, 31, 40), moving(8, 31, 40)[1:]
    whole = compare([(a, b)], network)
    parts = compare(zip(a.split(2), b.split(2), strict=True), network)
    assert whole.lpips is not None and len(whole.lpips) == 7
    assert parts.lpips == pytest.approx(whole.lpips, rel=1e-4, abs=1e-6)
    assert whole.lpips_mean == pytest.approx(sum(whole.lpips) / 7)
    assert network.weights.startswith(str(weights))


def test_safetensors_give_the_same(network: LpipsDistance, tmp_path: Path) -> None:
    save_file(random_backbone(), tmp_path / "alexnet.safetensors")
    a, b = moving(1), noise(1, 40, 48)
    assert load_lpips(tmp_path / "alexnet.safetensors")(a, b) == network(a, b)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"LPIPS weights not found: .*none\.pth"):
        load_lpips(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("not weights", encoding="utf-8")
    with pytest.raises(ValueError, match=r"text\.pth cannot be read as LPIPS weights"):
        load_lpips(tmp_path / "text.pth")
    (tmp_path / "text.safetensors").write_text("not weights", encoding="utf-8")
    with pytest.raises(ValueError, match=r"text\.safetensors cannot be read as LPIPS weights"):
        load_lpips(tmp_path / "text.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list, not AlexNet's named tensors"):
        load_lpips(tmp_path / "list.pth")
    state = random_backbone()
    del state["features.8.bias"]
    state["features.0.weight"] = torch.zeros(64, 3, 7, 7)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"features\.0\.weight \(64, 3, 7, 7\).*features\.8\.bias missing"):
        load_lpips(tmp_path / "other.pth")


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    for name in ("lpips", "torchvision.models"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(LpipsUnavailable, match=r"needs the packages lpips and torchvision.*setup_env\.sh"):
                load_lpips(weights)


def test_a_torchvision_of_another_torch_is_said(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    original = builtins.__import__

    def broken(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "lpips":
            raise RuntimeError("operator torchvision::nms does not exist")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(LpipsUnavailable, match="operator torchvision::nms does not exist"):
        load_lpips(weights)


def test_frames_too_small_are_said(weights: Path) -> None:
    with pytest.raises(LpipsUnavailable, match="at least 31 pixels a side; here are some of 24"):
        load_lpips(weights, smallest=24)


def test_weights_are_told_from_the_real_ones_by_their_checksum(
    weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = load_lpips(weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert found.weights == f"{weights} (sha256 {digest[:8]}, not torchvision's 7be5be79)"
    assert f"{weights} is not the file that torchvision has" in caplog.text
    # torchvision's file says in its name how its checksum begins.
    assert AlexNet_Weights.IMAGENET1K_V1.url.endswith("-7be5be79.pth")
    monkeypatch.setattr("metrics.similarity.lpips_distance.ALEXNET_SHA256", digest[:8])
    caplog.clear()
    assert load_lpips(weights).weights == f"{weights} (torchvision's, by its sha256 {digest[:8]})"
    assert not caplog.text
