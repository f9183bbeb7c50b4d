"""How like two videos of the same noise are, second by second, while the second one is made.

The files cannot tell: H.264 loses more than most caching does. So the latents of every chunk are kept (24 KB a second
at 64x64, 3 MB at 720x720) and decoded once more for the comparison, which gives the frames of the first video bit by
bit.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save

from inference.files import replacing
from inference.session.session import VideoChunk
from inference.video.codec import VaeCodec
from metrics.similarity.measures import psnr, squared_errors

# Latents are kept of so many chunks; of an endless video those of the first ten minutes.
MOST_CHUNKS = 600
_NAME = "latents"


def _file(folder: Path, chunk: int) -> Path:
    return folder / f"{chunk:05}.safetensors"


def keep_latents(folder: Path, chunk: VideoChunk) -> None:
    """Write what a chunk was decoded from into ``folder``; OSError where there is no room."""
    if chunk.number < MOST_CHUNKS:
        folder.mkdir(exist_ok=True)
        with replacing(_file(folder, chunk.number)) as part:
            part.write_bytes(save({_NAME: chunk.latents.cpu().contiguous()}))


def kept_chunks(folder: Path) -> int:
    """Of how many chunks, from the first on, latents are there."""
    return len(list(folder.glob("*.safetensors")))


def kept_latents(folder: Path, chunk: int) -> torch.Tensor | None:
    """What is kept of ``chunk``, (1, 16, t, H / 8, W / 8) on the CPU; None where it is not there."""
    try:
        return load_file(_file(folder, chunk))[_NAME]
    except FileNotFoundError:
        return None


def likeness(latents: torch.Tensor, chunk: VideoChunk, codec: VaeCodec) -> float | None:
    """PSNR in dB of ``chunk`` to what ``latents`` decode to, over all its pixels; None where they are the same."""
    other = codec.decode_chunk(latents.to(chunk.latents.device))
    count = min(len(other), len(chunk.frames))
    errors = squared_errors(chunk.frames[:count], other[:count])
    return psnr(float(torch.tensor(errors, dtype=torch.float64).mean()))
