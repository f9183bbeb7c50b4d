"""What may be asked for, and uploads before they are decoded."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from inference.config import load_config
from serving import limits
from serving.limits import check_clip, check_image, kind_of
from serving.orders import METHODS, VideoOrder
from tests.paths import ROOT
from tests.serving.live_server import NANO

ASSETS = ROOT / "example/assets"


def resolve(**fields: Any) -> Any:
    return VideoOrder(prompt="a ball", **fields).resolve(load_config(NANO), NANO, None)


def test_settings_of_an_order() -> None:
    method, config = resolve(seconds=2.5, num_steps=16, seed=7, method="multistep")
    assert (config.runtime.num_frames, config.runtime.num_steps, config.runtime.seed) == (60, 16, 7)
    assert method.name == "multistep" and "none" in METHODS
    assert resolve(seconds=None)[1].runtime.endless
    assert resolve()[1].runtime.num_frames == 240 and resolve()[0].settings is None
    assert resolve(target_psnr=35)[0].chosen is not None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": ""}, "at least 1"),
        ({"prompt": "a" * 4001}, "at most 4000"),
        ({"prompt": "a ball", "seconds": 0}, "greater than 0"),
        ({"prompt": "a ball", "seconds": 1e9}, "less than or equal"),
        ({"prompt": "a ball", "seconds": float("nan")}, "finite"),
        ({"prompt": "a ball", "method": "../../etc/passwd"}, "Input should be"),
        ({"prompt": "a ball", "num_steps": 0}, "greater than or equal"),
        ({"prompt": "a ball", "seed": -1}, "greater than or equal"),
        ({"prompt": "a ball", "target_psnr": -1}, "greater than 0"),
        ({"prompt": "a ball", "output_path": "/etc/passwd"}, "Extra inputs"),
        ({"prompt": "a ball", "prompts": [{"chunk": 3, "prompt": "x"}, {"chunk": 3, "prompt": "y"}]}, "ascend"),
    ],
)
def test_orders_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VideoOrder.model_validate(fields)


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="method and target_psnr exclude each other"):
        resolve(method="none", target_psnr=30)
    with pytest.raises(ValueError, match="num_steps 7"):
        resolve(num_steps=7)


def test_uploads_are_known_by_their_contents(tmp_path: Path) -> None:
    assert kind_of((ASSETS / "image.png").read_bytes()[:16]) == "image"
    assert kind_of((ASSETS / "clip.mp4").read_bytes()[:16]) == "clip"
    assert kind_of(b"#!/bin/sh") is None and kind_of(b"") is None and kind_of(b"RIFF....WAVE") is None
    check_image(ASSETS / "image.png")
    check_clip(ASSETS / "clip.mp4")


def test_uploads_that_are_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = tmp_path / "large.png"
    Image.new("1", (10_000, 5_001)).save(large)
    with pytest.raises(ValueError, match="10000x5001 pixels"):
        check_image(large)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG and nothing else")
    with pytest.raises(ValueError, match="no picture that can be read"):
        check_image(broken)
    broken.write_bytes(b"....ftypmp42 and nothing else")
    with pytest.raises(ValueError, match="no video"):
        check_clip(broken)
    monkeypatch.setattr(limits, "MOST_CLIP_SECONDS", 0.5)
    with pytest.raises(ValueError, match="the clip has"):
        check_clip(ASSETS / "clip.mp4")


def test_the_server_does_without_torch() -> None:
    """Only the worker loads it: the server starts at once and stays small."""
    code = "import sys, serving.app, serving.studio; sys.exit('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=False, env={"PYTHONPATH": str(ROOT)})
    assert found.returncode == 0
