"""Decoding finished chunks while the next are denoised (docs/memory.md, "Decoding while denoising").

The caller's thread denoises, one thread of our own decodes. On a GPU that thread has a CUDA stream of its own, so the
kernels of both share the device.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from inference.config import Switch

logger = logging.getLogger(__name__)

THREAD_NAME = "decode-ahead"

Decode = Callable[[Tensor], Tensor]


def overlaps(setting: Switch, device: torch.device, ranks: int, offloaded: bool) -> bool:
    """Whether to decode ahead, by ``engine_config.overlap_decode``.

    Args:
        setting: "auto" means on a GPU, where the VAE stays: one that comes and goes would come just when the
            transformer needs the memory.
        device: where both models run.
        ranks: of several, all take part in decoding; in two threads their exchanges would mix, so a wish for it is
            refused with a warning.
        offloaded: whether the VAE is on the device only while it is used.
    """
    if ranks > 1:
        if setting is True:
            logger.warning(
                "engine_config.overlap_decode is ignored: %d processes share the decoding of every chunk", ranks
            )
        return False
    return device.type == "cuda" and not offloaded if setting == "auto" else setting


def decode_ahead(chunks: Iterator[Tensor], decode: Decode, device: torch.device) -> Iterator[Tensor]:
    """``decode`` of every chunk, in order, while the next chunk is drawn from ``chunks``.

    At most two chunks are held: one is decoded, one waits. An error of ``decode`` is raised here, in its turn. Where
    drawing a chunk fails or is interrupted, the chunks before it come out first. Closing the generator drops what
    waits and leaves no thread behind.

    Args:
        chunks: latents on ``device``, computed on the current stream of the calling thread.
        decode: latents to frames on the CPU; it runs in another thread, never twice at a time.
        device: where decode computes.
    """
    side = torch.cuda.Stream(device) if device.type == "cuda" else None
    pending: deque[Future[Tensor]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix=THREAD_NAME) as worker:
        try:
            for latents in chunks:
                pending.append(worker.submit(_decode_job(decode, latents, side)))
                if len(pending) > 1:
                    yield _take(pending)
            yield from _rest(pending)
        except GeneratorExit:
            raise
        except BaseException:
            # What was finished before is as good as in a run without us: the caller gets it, then hears of the error.
            yield from _rest(pending)
            raise
        finally:
            for future in pending:
                future.cancel()


def _take(pending: deque[Future[Tensor]]) -> Tensor:
    """The oldest result. It leaves the queue only once it is there, so an interrupted wait loses nothing."""
    frames = pending[0].result()
    pending.popleft()
    return frames


def _rest(pending: deque[Future[Tensor]]) -> Iterator[Tensor]:
    while pending:
        yield _take(pending)


def _decode_job(decode: Decode, latents: Tensor, side: torch.cuda.Stream | None) -> Callable[[], Tensor]:
    """Called where ``latents`` were computed; what it returns is called in the thread that decodes."""
    if side is None:
        return lambda: decode(latents)
    ready = torch.cuda.Event()
    ready.record(torch.cuda.current_stream(side.device))

    def job() -> Tensor:
        with torch.cuda.stream(side):
            side.wait_event(ready)
            latents.record_stream(side)
            return decode(latents)

    return job
