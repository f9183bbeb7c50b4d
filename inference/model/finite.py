"""Stops a run whose numbers are not numbers: a NaN or an infinity in one place is a black video in the end."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from inference.errors import ExpectedError


class NotFiniteError(ExpectedError):
    """Numbers of a run are not finite. The message names the stage and where in the video it was."""


def require_finite(values: Tensor, what: str) -> None:
    """NotFiniteError where ``values``, named ``what``, hold a NaN or an infinity; the host waits for the answer."""
    if not bool(values.isfinite().all()):
        bad = int((~values.isfinite()).sum())
        raise NotFiniteError(f"{what}: {bad} of {values.numel()} numbers are not finite")


def unfinite_weights(module: nn.Module, named: int = 3) -> str | None:
    """Which weights of ``module`` hold numbers that are not finite, the first ``named`` of them; None for none."""
    names = [name for name, weight in module.named_parameters() if not _all_finite(weight)]
    if not names:
        return None
    more = f" and {len(names) - named} more" if len(names) > named else ""
    return f"{', '.join(names[:named])}{more}"


@contextmanager
def reasons(models: Mapping[str, nn.Module], how: str) -> Iterator[None]:
    """Beside numbers that are not finite, where they may come from: weights of ``models``, or ``how`` was computed."""
    try:
        yield
    except NotFiniteError as error:
        for name, module in models.items():
            if weights := unfinite_weights(module):
                raise NotFiniteError(
                    f"{error}; nor are weights of the {name}: {weights}. The file is damaged: fetch it again"
                ) from None
        raise NotFiniteError(
            f"{error}; all weights are. Computed in {how}: try --attention_backend sdpa, or params_dtype torch.float32"
        ) from None


def _all_finite(weight: Tensor) -> bool:
    # fp8 numbers know no such question.
    wide = weight if weight.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64) else weight.float()
    return bool(wide.isfinite().all())


class FiniteLatents:
    """Looks at the latents of every step without the computation waiting for it.

    A step leaves one flag a chunk, which is copied to the host beside the next step and read after that was asked for.

    Args:
        device: where the latents are.
        steps: of the whole video, None where it has no end.
    """

    def __init__(self, device: torch.device, steps: int | None) -> None:
        self.device = device
        self.steps = steps
        self._asked: tuple[int, tuple[int, ...], Tensor, torch.cuda.Event | None] | None = None

    def step(self, number: int, latents: Mapping[int, Tensor]) -> None:
        """Ask about the chunks of step ``number``, after the answer for the step before was read.

        Raises:
            NotFiniteError: latents of the step before are not finite.
        """
        # A sum is finite where all numbers are: latents are about one, and there are far fewer than float32 can add.
        flags = torch.stack([chunk.sum() for chunk in latents.values()]).isfinite()
        self.read()
        if self.device.type != "cuda":
            self._asked = number, tuple(latents), flags, None
            return
        copied = flags.to("cpu", non_blocking=True)
        self._asked = number, tuple(latents), copied, torch.cuda.current_stream(self.device).record_event()

    def read(self) -> None:
        """Wait for the answer to what was asked last.

        Raises:
            NotFiniteError: latents of that step are not finite.
        """
        if self._asked is None:
            return
        number, chunks, flags, copied = self._asked
        self._asked = None
        if copied is not None:
            copied.synchronize()
        bad = [chunk for chunk, finite in zip(chunks, flags.tolist(), strict=True) if not finite]
        if bad:
            raise NotFiniteError(
                f"denoising: the latents of {_chunks(bad)} are not finite after step {number + 1}"
                + ("" if self.steps is None else f" of {self.steps}")
            )


def _chunks(numbers: Iterable[int]) -> str:
    listed = ", ".join(str(number) for number in numbers)
    return f"chunks {listed}" if "," in listed else f"chunk {listed}"
