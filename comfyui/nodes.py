"""The nodes as ComfyUI knows them: fields, sockets, and its progress bar; what they do is in making.py."""

from fractions import Fraction
from typing import Any

import comfy.model_management as management
import torch
from comfy.utils import ProgressBar
from comfy_api.latest import ComfyExtension, InputImpl, Types, io
from PIL import Image
from torch import Tensor

from harness.device import choose_device

from .making import (
    BY_PSNR,
    BY_SPEEDUP,
    HeldModel,
    ModelChoice,
    Prompts,
    beginning,
    chosen_prompts,
    make,
    method_names,
    model_names,
    pictures,
    read_prompts,
    settings,
)

CATEGORY = "FlowCache"
FlowCacheModel = io.Custom("FLOWCACHE_MODEL")
FlowCachePrompts = io.Custom("FLOWCACHE_PROMPTS")
# Seeds are hashed, so any that ComfyUI draws will do.
LARGEST_SEED = 2**64 - 1
PREVIEW_SIZE = 512  # the longer side, in pixels


def make_room(device: str) -> None:
    """Take ComfyUI's own models from the GPU: where ours are placed is decided by what is free (docs/memory.md)."""
    if choose_device(device).type == "cuda":
        management.unload_all_models()
        management.soft_empty_cache()


# Of this process: ComfyUI runs one workflow at a time.
HELD = HeldModel(make_room)


def devices() -> list[str]:
    return ["auto", "cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]


class LoadModel(io.ComfyNode):
    """A configuration; its models stay loaded until another is asked for."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlowCacheLoadModel",
            display_name="FlowCache: load model",
            category=CATEGORY,
            description="MAGI-1 as a configuration describes it. It is held from run to run until another is loaded.",
            inputs=[
                io.Combo.Input("configuration", options=model_names(), default=model_names()[0]),
                io.String.Input(
                    "path", default="", tooltip="a configuration file of your own, in place of the one that is chosen"
                ),
                io.Combo.Input("device", options=devices(), default="auto"),
            ],
            outputs=[FlowCacheModel.Output(display_name="model")],
        )

    @classmethod
    def fingerprint_inputs(cls, configuration: str, path: str, device: str) -> Any:
        """A configuration that was changed on the disk is loaded anew."""
        return ModelChoice.of(configuration, path or "", device).stamp()

    @classmethod
    def execute(cls, configuration: str, path: str, device: str) -> io.NodeOutput:
        choice = ModelChoice.of(configuration, path, device)
        HELD.maker(choice)
        return io.NodeOutput(choice)


class PromptsOverTime(io.ComfyNode):
    """A prompt for the beginning and others that take over later."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlowCachePrompts",
            display_name="FlowCache: prompts over time",
            category=CATEGORY,
            description="What a video shows from the beginning, and what from some second on.",
            inputs=[
                io.String.Input("first", multiline=True, default="", tooltip="what rules from the beginning"),
                io.String.Input(
                    "schedule",
                    multiline=True,
                    default="",
                    tooltip='a line each: "4s: a small green square bounces"; times are such as 4s, 1m30s, chunk 4',
                ),
            ],
            outputs=[FlowCachePrompts.Output(display_name="prompts")],
        )

    @classmethod
    def validate_inputs(cls, first: str | None, schedule: str | None) -> bool | str:
        """Told before anything runs. None is text that comes from another node and is not there yet."""
        if first is None or schedule is None:
            return True
        try:
            read_prompts(first, schedule)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, first: str, schedule: str) -> io.NodeOutput:
        return io.NodeOutput(read_prompts(first, schedule))


class MakeVideo(io.ComfyNode):
    """One video, chunk by chunk."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlowCacheMakeVideo",
            display_name="FlowCache: make video",
            category=CATEGORY,
            description="A video of MAGI-1, with a picture of every chunk that is finished. Cancel drops it.",
            inputs=[FlowCacheModel.Input("model"), *making_fields(), *beginning_sockets()],
            outputs=[
                io.Video.Output(display_name="video"),
                io.Image.Output(display_name="frames"),
                io.Image.Output(display_name="reuse_map"),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelChoice,
        prompt: str,
        method: str,
        target: float,
        seconds: float,
        steps: int,
        seed: int,
        clip_fps: float,
        prompts: Prompts | None = None,
        image: Tensor | None = None,
        clip: Tensor | None = None,
        video: Any = None,
    ) -> io.NodeOutput:
        wish = settings(method, target, seconds, steps, seed)
        chosen = chosen_prompts(prompt, prompts)
        given = beginning(image, clip, None if video is None else components(video), clip_fps)
        made = make(HELD.maker(model), chosen, given, wish, Bar())
        frames = pictures(made.frames)
        film = InputImpl.VideoFromComponents(Types.VideoComponents(images=frames, frame_rate=Fraction(made.fps)))
        return io.NodeOutput(film, frames, pictures(made.reuse_map), made.report)


def making_fields() -> list[io.Input]:
    """How a video is made."""
    return [
        io.String.Input(
            "prompt", multiline=True, default="", tooltip="what the video shows; empty where prompts are connected"
        ),
        io.Combo.Input("method", options=method_names(), default="flowcache_fast", tooltip="none is MAGI-1 itself"),
        io.Float.Input(
            "target",
            default=35.0,
            min=0.0,
            max=1000.0,
            step=0.5,
            tooltip=f'what method "{BY_PSNR}" or "{BY_SPEEDUP}" is to reach; the others do not read it',
        ),
        io.Float.Input("seconds", default=10.0, min=0.05, max=36000.0, step=0.5),
        io.Int.Input("steps", default=0, min=0, max=1024, tooltip="0: as many as the configuration says"),
        io.Int.Input("seed", default=1234, min=0, max=LARGEST_SEED, control_after_generate=True),
        io.Float.Input(
            "clip_fps", default=24.0, min=0.01, max=1000.0, step=0.01, tooltip="how many pictures of clip are a second"
        ),
    ]


def beginning_sockets() -> list[io.Input]:
    """What may be connected."""
    return [
        FlowCachePrompts.Input("prompts", optional=True, tooltip="in place of prompt"),
        io.Image.Input("image", optional=True, tooltip="the first frame"),
        io.Image.Input("clip", optional=True, tooltip="pictures that the video goes on from"),
        io.Video.Input("video", optional=True, tooltip="a video that this one goes on from"),
    ]


def components(video: Any) -> tuple[Tensor, Fraction | float]:
    """Pictures (T, H, W, C) of a VIDEO, and how many are a second."""
    found = video.get_components()
    return found.images, found.frame_rate


class Bar:
    """ComfyUI's progress bar and its button to cancel, after every step and every chunk."""

    def __init__(self) -> None:
        self._bar = ProgressBar(1)

    def step(self, done: int, of: int) -> None:
        management.throw_exception_if_processing_interrupted()
        self._bar.update_absolute(done, of)

    def chunk(self, done: int, of: int, picture: Image.Image) -> None:
        management.throw_exception_if_processing_interrupted()
        self._bar.update_absolute(done, of, ("JPEG", picture, PREVIEW_SIZE))


class FlowCacheExtension(ComfyExtension):
    """The nodes of this folder."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadModel, PromptsOverTime, MakeVideo]
