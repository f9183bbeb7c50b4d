"""TeaCache's parameters, checked before a run (docs/teacache.md, "Parameters")."""

from typing import Annotated

from pydantic import Field

from inference.settings import ReuseSettings


class TeaCacheConfig(ReuseSettings):
    """One field per parameter. The defaults reuse nothing: MAGI-1 itself, bit for bit."""

    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        5, description="steps of the video during which every chunk is computed"
    )
    coefficients: Annotated[tuple[float, ...], Field(strict=False, min_length=1)] | None = Field(
        None,
        description="polynomial, highest power first, that a change goes through before it is accumulated; without "
        "it the change itself is",
    )
