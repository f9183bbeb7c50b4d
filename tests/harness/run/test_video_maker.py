"""Videos from Python: what docs/python.md says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.run.video_maker import VideoMaker
from inference.session.times import parse_timed
from inference.video.reading import read_video
from inference.video.tensors import Clip
from tests.loading import load_script
from tests.paths import ROOT

pytestmark = pytest.mark.slow

PROMPT = "a big red circle moves up"


@pytest.fixture(scope="module")
def maker() -> VideoMaker:
    return VideoMaker.load(ROOT / "configs/model/nano.json", "cpu")


def test_it_is_the_video_of_the_command_line(maker: VideoMaker, tmp_path: Path) -> None:
    ours = maker.video(PROMPT, method="multistep", seconds=2, num_steps=16, prompts=[(1, "a small green square")])
    assert ours.save(tmp_path / "ours.mp4") == tmp_path / "ours.mp4" and ours.chunks == 2
    flags = ["--prompt", PROMPT, "--prompt_at", "chunk 1: a small green square", "--method", "multistep", "--quiet"]
    flags += ["--num_frames", "48", "--num_steps", "16", "--output_path", str(tmp_path / "theirs.mp4")]
    assert load_script("generate").main(flags) == 0
    assert (tmp_path / "ours.mp4").read_bytes() == (tmp_path / "theirs.mp4").read_bytes()
    assert (tmp_path / "ours.json").is_file() and (tmp_path / "ours.reuse.png").is_file()


def test_chunks_come_out_and_it_is_steered(maker: VideoMaker) -> None:
    video, steps = maker.video(PROMPT, seconds=None, num_steps=8, on_step=lambda step: steps.append(step)), []
    seen = []
    for chunk in video:
        seen.append(chunk.frames)
        if chunk.number == 0:
            video.set_prompt("a small green square")
        if chunk.number == 1:
            video.end()
    assert all(frames.dtype == torch.uint8 and frames.shape == (24, 64, 64, 3) for frames in seen)
    assert len(seen) >= 2 and steps and [each.prompt for each in video.report.prompts][-1] == "a small green square"


def test_from_a_picture_and_a_clip(maker: VideoMaker) -> None:
    for given in ({"image": ROOT / "example/assets/image.png"}, {"clip": ROOT / "example/assets/clip.mp4"}):
        video = maker.video(PROMPT, seconds=1, num_steps=8, **given)
        assert sum(len(chunk.frames) for chunk in video) == 24 and video.sample.prefix is not None


def test_what_is_in_memory_is_what_is_in_a_file(maker: VideoMaker) -> None:
    picture = ROOT / "example/assets/image.png"
    pixels = torch.from_numpy(np.array(Image.open(picture).convert("RGB")))
    prefix = maker.video(PROMPT, seconds=1, num_steps=8, image=pixels).sample.prefix
    assert torch.equal(prefix, maker.video(PROMPT, seconds=1, num_steps=8, image=picture).sample.prefix)
    frames = read_video(ROOT / "example/assets/clip.mp4", 24, 64, 64)
    video = maker.video(PROMPT, seconds=1, num_steps=8, clip=Clip(frames, 24))
    assert torch.equal(video.sample.prefix, frames[-len(video.sample.prefix) :])


def test_prompts_with_times(maker: VideoMaker) -> None:
    timed = [parse_timed("2s: a small green square"), parse_timed("chunk 1: a big blue circle")]
    video = maker.video(PROMPT, seconds=3, timed=timed)
    assert [(each.chunk, each.prompt) for each in video.sample.changes] == [
        (0, PROMPT),
        (1, "a big blue circle"),
        (2, "a small green square"),
    ]
    first = maker.video(None, seconds=3, timed=[parse_timed("0s: a small green square")])
    assert first.sample.changes[0].prompt == "a small green square"


def test_what_does_not_go_together(maker: VideoMaker, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image and clip exclude each other"):
        maker.video(PROMPT, image="a.png", clip="b.mp4")
    with pytest.raises(ValueError, match="method and target_psnr exclude each other"):
        maker.video(PROMPT, method="none", target_psnr=30)
    with pytest.raises(ValueError, match="a prompt is to begin with chunk 4, and the video has 2 chunks"):
        maker.video(PROMPT, seconds=2, prompts=[(4, "a ball")])
    with pytest.raises(ValueError, match="a prompt at 2s comes too late"):
        maker.video(PROMPT, seconds=2, timed=[parse_timed("2s: a ball")])
    with pytest.raises(ValueError, match="prompts and timed exclude each other"):
        maker.video(PROMPT, seconds=2, prompts=[(1, "a ball")], timed=[parse_timed("1s: a ball")])
    with pytest.raises(ValueError, match="there is no prompt"):
        maker.video(None)
    with pytest.raises(ValueError, match="num_steps 7"):
        maker.video(PROMPT, num_steps=7)
    video = maker.video(PROMPT, seconds=1, num_steps=8)
    video.session.end("drop")
    with pytest.raises(ValueError, match="no frames were written"):
        video.save(tmp_path / "nothing.mp4")
