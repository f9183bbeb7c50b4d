"""What the server says to its worker. Without torch, which the server's process never imports."""

from dataclasses import dataclass
from typing import Any

from serving.orders import Input


@dataclass(frozen=True)
class Task:
    """One order on its way to the worker. ``input_path``: the image or clip that was uploaded. ``latents``: a folder
    for those of every chunk; ``beside``: that of an earlier video, which this one is compared with as far as that goes.
    """

    id: str
    order: dict[str, Any]
    video: str
    input_path: str | None
    given: Input | None
    latents: str
    beside: str | None = None
    # That one was stopped: this one, which is as long by its order, ends where it does.
    ends_with_it: bool = False


@dataclass(frozen=True)
class Wish:
    """What a viewer wants of the video ``id`` while it is made: a prompt, or its end."""

    id: str
    prompt: str | None = None
    end: bool = False
