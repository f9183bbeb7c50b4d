"""Where a run computes: the device by name, and the threads on a CPU."""

import torch

from inference.config import MagiConfig

# Numbers in the activations of one chunk (tokens x width) below which a second thread costs more than it gives: on a
# busy machine waiting for it made the bundled model (96 x 192) ten times slower, on a free one it saved a tenth.
SMALL_CHUNK = 2**17


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name!r} is not supported; auto, cpu, cuda, cuda:1, ... are")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"--device {name}: {count} CUDA devices can be used here; try --device cpu")
    return device


def set_threads(threads: int | None, config: MagiConfig) -> None:
    """Use ``threads`` CPU threads; where that is None, one for a very small model and torch's default otherwise."""
    if threads is not None and threads < 1:
        raise ValueError(f"--threads must be at least 1, got {threads}")
    if threads is None and config.tokens_per_chunk * config.model.hidden_size < SMALL_CHUNK:
        threads = 1
    if threads is not None:
        torch.set_num_threads(threads)
