"""LPIPS by the `lpips` library: AlexNet, spatial map, mean over pixels (docs/metrics.md, "LPIPS").

The library brings its own small weights, but takes AlexNet's from torchvision, which downloads them. Where that fails
LPIPS is missing and everything else works; a local copy may be named instead.
"""

import hashlib
import logging
import pickle
import warnings
from http.client import HTTPException
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# AlexNet's first convolution and two poolings need this many pixels.
MIN_SIZE = 31
# How the checksum of torchvision's file begins, as its name says.
ALEXNET_SHA256 = "7be5be79"


class LpipsUnavailable(RuntimeError):
    """LPIPS cannot be computed here; the message says why and what to do."""


class LpipsDistance:
    """A call gives the LPIPS distance of every frame; inputs uint8 (n, H, W, 3) on the network's device."""

    def __init__(self, network: nn.Module, weights: str) -> None:
        self.network = network
        self.weights = weights

    @torch.no_grad()
    def __call__(self, original: Tensor, generated: Tensor) -> list[float]:
        images = [frames.movedim(-1, 1).float() / 127.5 - 1 for frames in (original, generated)]
        return self.network(*images).flatten(1).mean(dim=1).tolist()


def load_lpips(
    weights: Path | None = None, device: torch.device | None = None, smallest: int = MIN_SIZE
) -> LpipsDistance:
    """The network with AlexNet's weights from ``weights``, or from torchvision's cache or the network.

    ``weights`` is a file in torchvision's format (`.pth`, as torchvision downloads it, or `.safetensors`);
    ``smallest`` the shortest side of any frame in pixels.

    Raises:
        LpipsUnavailable: a package is missing or broken, the weights cannot be downloaded, or frames are too small.
        FileNotFoundError, ValueError: ``weights`` does not exist or is something else.
    """
    state = None if weights is None else read_weights(weights)
    if smallest < MIN_SIZE:
        raise LpipsUnavailable(f"LPIPS needs frames of at least {MIN_SIZE} pixels a side; here are some of {smallest}")
    try:
        import lpips
        from torchvision.models import AlexNet_Weights
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch's build raises the latter
        raise LpipsUnavailable(
            f"LPIPS needs the packages lpips and torchvision, which cannot be used here: {error}; "
            "scripts/setup_env.sh installs what requirements.txt lists"
        ) from error
    if state is None:
        logger.info("LPIPS: looking for AlexNet's weights in torchvision's cache, otherwise downloading 233 MiB")
        try:
            state = AlexNet_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
        except (OSError, HTTPException, RuntimeError) as error:
            url = AlexNet_Weights.IMAGENET1K_V1.url
            raise LpipsUnavailable(
                f"LPIPS needs AlexNet's weights, which cannot be downloaded here ({error}); fetch {url} on another "
                "machine and name the file with --lpips_weights"
            ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library calls torchvision in a way that it has deprecated
        network = lpips.LPIPS(net="alex", spatial=True, pnet_rand=True, verbose=False)
    _fill(network.net, state)
    return LpipsDistance(network.eval().to(device or "cpu"), "torchvision" if weights is None else _identify(weights))


def _identify(path: Path) -> str:
    """The file with what its checksum says of it; a warning where it is not the file that torchvision downloads."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()[: len(ALEXNET_SHA256)]
    if found == ALEXNET_SHA256:
        return f"{path} (torchvision's, by its sha256 {found})"
    logger.warning("warning: %s is not the file that torchvision has (sha256 %s...): no official LPIPS", path, found)
    return f"{path} (sha256 {found}, not torchvision's {ALEXNET_SHA256})"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Named tensors of a file in torchvision's format."""
    if not path.is_file():
        raise FileNotFoundError(f"LPIPS weights not found: {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as LPIPS weights: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not AlexNet's named tensors")
    return state


def _fill(backbone: nn.Module, state: dict[str, Tensor]) -> None:
    """Put the convolutions of torchvision's AlexNet, ``features.N.*``, into the library's slices of it."""
    own = {f"features.{name.partition('.')[2]}": tensor for name, tensor in backbone.state_dict().items()}
    wrong = [
        f"{name} {tuple(state[name].shape) if name in state else 'missing'} (needed: {tuple(tensor.shape)})"
        for name, tensor in own.items()
        if name not in state or state[name].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(f"these weights are not torchvision's AlexNet: {', '.join(wrong)}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
