"""What may be asked for, and how far a video is: the words of the HTTP interface (docs/serve.md).

Names follow the OpenAI video interface where it has them: ``prompt``, ``seconds``, ``status``, ``progress``.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from harness.calibration.files import Mode
from harness.methods import Method
from harness.run.choosing import choose
from inference.config import REPOSITORY_ROOT, MagiConfig
from inference.text.cleaning import clean_caption

Status = Literal["queued", "in_progress", "completed", "stopped", "failed"]
Input = Literal["image", "clip"]
ENDED: tuple[Status, ...] = ("completed", "stopped", "failed")
MOST_PROMPT_LETTERS = 4000
MOST_PROMPTS = 1000
MOST_SECONDS = 3600.0


def _text(prompt: str) -> str:
    clean_caption(prompt)  # ValueError for what is no text
    return prompt


Prompt = Annotated[str, Field(min_length=1, max_length=MOST_PROMPT_LETTERS), AfterValidator(_text)]
METHODS = tuple(sorted(path.stem for path in (REPOSITORY_ROOT / "configs/method").glob("*.yaml")))


class LaterPrompt(BaseModel):
    """From ``chunk`` on, counted from 0, ``prompt`` rules."""

    model_config = ConfigDict(extra="forbid")

    chunk: Annotated[int, Field(ge=1)]
    prompt: Prompt


class VideoOrder(BaseModel):
    """A video to be made. ``seconds`` null: until it is stopped. Of ``method`` and the targets one at most.
    ``prompts``: those that take over later, in ascending order.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: Prompt
    prompts: Annotated[list[LaterPrompt], Field(max_length=MOST_PROMPTS)] = []
    seconds: Annotated[float, Field(gt=0, le=MOST_SECONDS)] | None = 10.0
    method: Literal[METHODS] | None = None  # type: ignore[valid-type]
    target_psnr: Annotated[float, Field(gt=0)] | None = None
    target_speedup: Annotated[float, Field(gt=0)] | None = None
    num_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None

    @field_validator("prompts")
    @classmethod
    def _ascend(cls, prompts: list[LaterPrompt]) -> list[LaterPrompt]:
        chunks = [later.chunk for later in prompts]
        if sorted(set(chunks)) != chunks:
            raise ValueError(f"their chunks have to ascend, not {chunks}")
        return prompts

    def resolve(self, config: MagiConfig, config_file: str, given: Input | None) -> tuple[Method, MagiConfig]:
        """The method and the configuration of this video; ValueError where they do not go together."""
        mode: Mode = "t2v" if given is None else "i2v" if given == "image" else "v2v"
        return choose(config, config_file, mode=mode, **self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """What ``harness.run.choosing.choose`` takes."""
        return self.model_dump(include={"method", "target_psnr", "target_speedup", "seconds", "num_steps", "seed"})


@dataclass
class Video:
    """One video of the server's, from its order to its file.

    ``wished``: prompts that viewers set while it was made. ``events``: what happened, in order, each with a ``type``;
    of a long video the last ones. ``taken_back``: the worker had ended before it began. ``dropped``: how many events
    came before those. ``error``: why it failed. ``beside``: the video of the same noise that this one is compared with,
    and ``likeness`` the PSNR of each second of that to this one in dB, None where they are the same.
    """

    id: str
    order: VideoOrder
    created_at: int
    folder: Path
    given: Input | None = None
    status: Status = "queued"
    error: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    dropped: int = 0
    chunks: int | None = None
    chunks_done: int = 0
    progress: dict[str, Any] = field(default_factory=dict)
    wished: list[LaterPrompt] = field(default_factory=list)
    begun: bool = False
    taken_back: bool = False
    beside: str | None = None
    likeness: list[float | None] = field(default_factory=list)

    @property
    def latents(self) -> Path:
        """A folder, for the latents of the chunks."""
        return self.folder / "latents"

    @property
    def path(self) -> Path:
        return self.folder / "video.mp4"

    @property
    def input_path(self) -> Path:
        return self.folder / "input"

    @property
    def percent(self) -> int:
        """0 to 100; of a video without an end 0 until it is complete."""
        if self.status == "completed":
            return 100
        return 0 if not self.chunks else min(99, 100 * self.chunks_done // self.chunks)

    def to_json_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "video",
            "status": self.status,
            "progress": self.percent,
            "created_at": self.created_at,
            "error": None if self.error is None else {"message": self.error},
            "order": self.order.model_dump(mode="json"),
            "input": self.given,
            "wished": [later.model_dump() for later in self.wished],
            "chunks": self.chunks,
            "chunks_done": self.chunks_done,
            "cost": self.progress,
            "beside": self.beside,
            "likeness": self.likeness,
            "has_file": self.path.is_file(),
        }
