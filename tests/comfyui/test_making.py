"""What the nodes do, without ComfyUI: the model that is held, prompts, pictures in and out, progress and cancelling."""

import gc
import json
import threading
import weakref
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from comfyui.making import (
    BY_PSNR,
    BY_SPEEDUP,
    HeldModel,
    ModelChoice,
    Prompts,
    apart,
    beginning,
    chosen_prompts,
    make,
    method_names,
    model_names,
    pictures,
    pixels,
    read_prompts,
    settings,
)
from inference.video.decode_ahead import THREAD_NAME
from inference.video.reading import read_video
from inference.video.tensors import Clip
from tests.loading import load_script
from tests.paths import ROOT

NANO = ModelChoice.of("nano", "", "cpu")
PROMPT = "a big red circle moves up"
SHORT = settings("none", 0.0, 2.0, 8, 7)


class Watching:
    """Keeps what it is told; ``stop_at``: raises at that step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.steps: list[tuple[int, int]] = []
        self.pictures: list[Image.Image] = []
        self.stop_at = stop_at

    def step(self, done: int, of: int) -> None:
        self.steps.append((done, of))
        if done == self.stop_at:
            raise KeyError("cancelled")

    def chunk(self, done: int, of: int, picture: Image.Image) -> None:
        self.pictures.append(picture)


@pytest.fixture(scope="module")
def held() -> HeldModel:
    return HeldModel()


def generated(folder: Path, *flags: str) -> torch.Tensor:
    """Frames of scripts/generate.py with the settings of ``SHORT``."""
    path = folder / "theirs.mp4"
    given = ["--quiet", "--lossless", "--output_path", str(path), "--num_frames", "48", "--num_steps", "8"]
    assert load_script("generate").main([*given, "--seed", "7", "--prompt", PROMPT, *flags]) == 0
    return read_video(path, 24, 64, 64)


def test_what_can_be_chosen() -> None:
    assert model_names()[0] == "nano" and "4.5B_distill" in model_names()
    assert method_names()[0] == "none" and {"flowcache_fast", "multistep", BY_PSNR, BY_SPEEDUP} <= set(method_names())


def test_fields_to_settings() -> None:
    assert settings("none", 35.0, 2.0, 0, 7) == {"method": None, "seconds": 2.0, "num_steps": None, "seed": 7}
    assert settings("multistep", 35.0, 2.0, 16, 7)["method"] == "multistep"
    assert settings(BY_PSNR, 35.0, 2.0, 16, 7) == {"target_psnr": 35.0, "seconds": 2.0, "num_steps": 16, "seed": 7}
    assert settings(BY_SPEEDUP, 3.0, 2.0, 16, 7)["target_speedup"] == 3.0
    for seconds in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="seconds must be a number above 0"):
            settings("none", 35.0, seconds, 0, 7)
    with pytest.raises(ValueError, match=r"target PSNR \(dB\) must be a number above 0, got 0"):
        settings(BY_PSNR, 0.0, 2.0, 0, 7)


def test_prompts_of_two_fields() -> None:
    found = read_prompts(" a ball ", "# later\n\n4s: a cat\nchunk 6: a dog")
    assert found.first == "a ball" and [str(one) for one in found.timed] == ["4s", "chunk 6"]
    assert read_prompts("", "0s: a cat") == read_prompts("\n", "0: a cat")
    assert read_prompts("", "chunk 0: a cat").first is None


@pytest.mark.parametrize(
    ("first", "schedule", "said"),
    [
        ("a ball", "4s: a cat\nhello", 'prompts over time, line 2: "hello" has no time'),
        ("a ball", "\n\nsoon: a cat", 'prompts over time, line 3: "soon" is no time of a video'),
        ("a ball", "4s:  ", "prompts over time, line 1: there is no prompt at 4s"),
        ("", "4s: a cat", "prompts over time: nothing rules from the beginning"),
        ("", "chunk 1: a cat", "nothing rules from the beginning"),
        (" ", "", "nothing rules from the beginning"),
    ],
)
def test_what_are_no_prompts(first: str, schedule: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_prompts(first, schedule)


def test_prompts_come_from_one_place() -> None:
    connected = Prompts("a cat")
    assert chosen_prompts(" ", connected) is connected and chosen_prompts("a ball", None) == Prompts("a ball")
    with pytest.raises(ValueError, match="exclude each other"):
        chosen_prompts("a ball", connected)
    with pytest.raises(ValueError, match="there is no prompt"):
        chosen_prompts("", None)


def test_every_value_of_a_picture_comes_back() -> None:
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(pixels(pictures(frames), "image"), frames)
    assert torch.equal(pixels(torch.from_numpy(frames.numpy().astype(np.float32) / 255), "image"), frames)
    assert pixels(torch.tensor([[[[-1.0, 2.0, 0.5]]]]), "image").flatten().tolist() == [0, 255, 128]


def test_what_it_begins_with() -> None:
    one, two = torch.zeros(1, 8, 8, 3), torch.zeros(2, 8, 8, 3)
    assert beginning(None, None, None, 24.0) == {}
    assert beginning(one, None, None, 24.0)["image"].shape == (8, 8, 3)
    clip = beginning(None, two, None, 12.0)["clip"]
    assert isinstance(clip, Clip) and clip.frames.shape == (2, 8, 8, 3) and clip.fps == 12.0
    assert beginning(None, None, (two, Fraction(30)), 12.0)["clip"].fps == 30
    with pytest.raises(ValueError, match="image and clip exclude each other"):
        beginning(one, two, None, 24.0)
    with pytest.raises(ValueError, match="image holds 2 pictures"):
        beginning(two, None, None, 24.0)
    with pytest.raises(ValueError, match=r"clip must be pictures \(B, H, W, 3\)"):
        beginning(None, torch.zeros(2, 8, 8, 1), None, 24.0)
    with pytest.raises(ValueError, match="image has values that are no numbers"):
        beginning(one * torch.nan, None, None, 24.0)


def test_a_model_is_held_until_another_is_wanted(tmp_path: Path) -> None:
    room: list[str] = []
    held = HeldModel(room.append)
    first = held.maker(NANO)
    assert held.maker(ModelChoice.of("nano", " ", "cpu")) is first and held.loads == 1
    path = tmp_path / "mine.json"
    path.write_text((ROOT / "configs/model/nano.json").read_text())
    gone = weakref.ref(first.pipeline.dit)
    del first
    other = held.maker(ModelChoice.of("nano", str(path), "cpu"))
    gc.collect()
    assert gone() is None and held.loads == 2 and held.maker(ModelChoice.of("", str(path), "cpu")) is other
    path.write_text(path.read_text().replace('"seed": 1234', '"seed": 12345'))
    assert held.maker(ModelChoice.of("nano", str(path), "cpu")).pipeline.config.runtime.seed == 12345
    assert held.loads == 3 and room == ["cpu"] * 3
    with pytest.raises(FileNotFoundError, match="no_such"):
        held.maker(ModelChoice.of("nano", str(tmp_path / "no_such.json"), "cpu"))
    assert held.maker(NANO) is not other and held.loads == 4


def test_the_process_is_left_as_it_was() -> None:
    threads = torch.get_num_threads()
    with torch.inference_mode(), apart():
        torch.set_num_threads(threads + 1)
        assert not torch.is_inference_mode_enabled() and not torch.ones(1).is_inference()
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_it_is_the_video_of_the_command_line(held: HeldModel, tmp_path: Path) -> None:
    watch = Watching()
    with torch.inference_mode():  # as ComfyUI runs its nodes
        made = make(held.maker(NANO), Prompts(PROMPT), {}, SHORT, watch)
    assert made.fps == 24 and torch.equal(made.frames, generated(tmp_path))
    total = watch.steps[0][1]
    assert watch.steps == [(number, total) for number in range(1, total + 1)]
    assert [np.array(picture).tolist() for picture in watch.pictures] == made.frames[[23, 47]].tolist()
    assert "0.0% reused" in made.report and "method none" in made.report and "48 frames of 64x64" in made.report


@pytest.mark.slow
def test_a_picture_is_that_of_its_file(held: HeldModel, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    given = beginning(torch.from_numpy(image.astype(np.float32) / 255).unsqueeze(0), None, None, 24.0)
    made = make(held.maker(NANO), Prompts(PROMPT), given, SHORT, Watching())
    expected = generated(tmp_path, "--mode", "i2v", "--image_path", str(tmp_path / "a.png"))
    assert torch.equal(made.frames, expected)


@pytest.mark.slow
def test_cancelling_leaves_the_model_usable(held: HeldModel) -> None:
    maker = held.maker(NANO)
    before = make(maker, Prompts(PROMPT), {}, SHORT, Watching())
    watch = Watching(stop_at=5)
    with pytest.raises(KeyError, match="cancelled"):
        make(maker, Prompts(PROMPT), {}, SHORT | {"seconds": 60.0}, watch)
    assert len(watch.steps) == 5
    assert torch.equal(make(maker, Prompts(PROMPT), {}, SHORT, Watching()).frames, before.frames)


@pytest.mark.slow
def test_with_a_thread_that_decodes(held: HeldModel, tmp_path: Path) -> None:
    # As on a GPU. The thread is not in ComfyUI's inference mode, whichever ours is in.
    config = json.loads((ROOT / "configs/model/nano.json").read_text())
    config["engine_config"]["overlap_decode"] = True
    path = tmp_path / "ahead.json"
    path.write_text(json.dumps(config))
    with torch.inference_mode():
        before = make(held.maker(NANO), Prompts(PROMPT), {}, SHORT, Watching())
        maker = held.maker(ModelChoice.of("", str(path), "cpu"))
        assert maker.pipeline.overlap
        with pytest.raises(KeyError, match="cancelled"):
            make(maker, Prompts(PROMPT), {}, SHORT | {"seconds": 60.0}, Watching(stop_at=30))
        assert not [one for one in threading.enumerate() if one.name.startswith(THREAD_NAME)]
        made = make(maker, Prompts(PROMPT), {}, SHORT, Watching())
    assert torch.equal(made.frames, before.frames)


@pytest.mark.slow
def test_what_a_method_reused_is_shown(held: HeldModel) -> None:
    wish = settings("flowcache_fast", 0.0, 2.0, 16, 7)
    made = make(held.maker(NANO), read_prompts(PROMPT, "1s: a small green square"), {}, wish, Watching())
    assert "method flowcache_fast: 34.4% reused" in made.report
    assert "from 1 s (chunk 1): a small green square" in made.report
    colours = {tuple(colour) for colour in made.reuse_map[0].reshape(-1, 3).unique(dim=0).tolist()}
    assert {(0x1F, 0x4E, 0x79), (0xF4, 0xB1, 0x83)} <= colours  # computed and reused
    chosen = make(held.maker(NANO), Prompts(PROMPT), {}, settings(BY_SPEEDUP, 3.0, 1.0, 16, 7), Watching())
    assert "method multistep" in chosen.report and "chosen by the calibration: " in chosen.report


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompts", "wish", "said"),
    [
        (Prompts(PROMPT), {"num_steps": 7}, "num_steps 7 is not a multiple"),
        (read_prompts(PROMPT, "9s: a cat"), {}, "a prompt at 9s comes too late"),
        (read_prompts(PROMPT, "1s: a cat\nchunk 1: a dog"), {}, "two prompts for chunk 1"),
        (Prompts(PROMPT), {"method": None, "target_psnr": 35.0}, "calibration"),
    ],
)
def test_refused_in_one_sentence(held: HeldModel, prompts: Prompts, wish: dict[str, object], said: str) -> None:
    with pytest.raises((ValueError, OSError), match=said) as error:
        make(held.maker(NANO), prompts, {}, SHORT | wish, Watching())
    assert "\n" not in str(error.value)
