"""scripts/metric.py as users call it: what it prints, writes, warns of and refuses."""

import csv
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.fake_checkout import fake_checkout
from tests.loading import load_script
from tests.metrics.clips import moving, noise, write_deep, write_lossless

Measure = Callable[..., int]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("metric")


@pytest.fixture
def measure(script: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Measure:
    """Call the script's main without LPIPS, files going to ``tmp_path/out``; gives the status."""
    caplog.set_level("INFO")

    def run(*arguments: str | Path) -> int:
        flags = ["--no_lpips", "--device", "cpu", "--output_path", str(tmp_path / "out")]
        return script.main([*map(str, arguments), *flags])

    return run


def pair(
    folder: Path, original: Tensor, generated: Tensor, name: str = "video.mkv", fps: int = 24
) -> tuple[Path, Path]:
    return (
        write_lossless(folder / "original" / name, original),
        write_lossless(folder / "generated" / name, generated, fps),
    )


def written(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def expected_psnr(original: Tensor, generated: Tensor) -> float:
    error = np.square(original.numpy().astype(float) - generated.numpy().astype(float)).mean()
    return float(10 * np.log10(255**2 / error))


@pytest.mark.slow
def test_two_files(measure: Measure, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = moving(11), noise(11, 40, 48)
    files = pair(tmp_path, *clips)
    assert measure(*files, "--batch", "4") == 0
    contents = written(tmp_path)
    (video,) = contents["videos"]
    assert (video["name"], video["frames"], video["size"], video["fps"]) == ("video.mkv", 11, [48, 40], 24.0)
    assert video["psnr"] == pytest.approx(expected_psnr(*clips), abs=1e-9)
    each = [expected_psnr(a, b) for a, b in zip(*clips, strict=True)]
    assert video["per_frame"]["psnr"] == pytest.approx(each, abs=1e-9)
    assert video["psnr_frame_mean"] == pytest.approx(sum(each) / 11)
    assert video["lpips"] is None and contents["lpips_missing"] == "left out with --no_lpips"
    assert set(contents["figures"]) == {"psnr", "psnr_frame_mean", "ssim", "lpips"}

    (row,) = rows(tmp_path / "out" / "videos.csv")
    assert float(row["psnr"]) == video["psnr"] and float(row["ssim"]) == video["ssim"] and "lpips" not in row, (
        "no column of nothing"
    )
    frames = rows(tmp_path / "out" / "frames.csv")
    assert [float(frame["psnr"]) for frame in frames] == video["per_frame"]["psnr"]
    assert [int(frame["frame"]) for frame in frames] == list(range(11)) and "lpips" not in frames[0]

    printed = capsys.readouterr().out
    assert "LPIPS" not in printed
    line = next(line for line in printed.splitlines() if line.startswith("video.mkv"))
    assert line.split()[1:] == [
        "11",
        f"{video['psnr']:.2f}",
        f"{video['psnr_frame_mean']:.2f}",
        f"{video['ssim']:.4f}",
    ]
    assert sorted(os.listdir(tmp_path / "out")) == ["frames.csv", "metrics.json", "video.mkv.png", "videos.csv"]


def test_the_picture_shows_both_videos_and_their_difference(measure: Measure, tmp_path: Path) -> None:
    red = torch.zeros(5, 40, 48, 3, dtype=torch.uint8)
    red[..., 0] = 200
    assert measure(*pair(tmp_path, red, red.flip(-1))) == 0
    with Image.open(tmp_path / "out" / "video.mkv.png") as picture:
        colours = {colour: count for count, colour in picture.convert("RGB").getcolors(2**20)}
    assert min(colours.get(colour, 0) for colour in ((200, 0, 0), (0, 0, 200), (200, 0, 200))) > 1000


def test_of_more_than_8_bits_8_are_used_and_that_is_said_once(
    measure: Measure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deep = [write_deep(tmp_path / name / "video.mkv", moving(2)) for name in ("original", "generated")]
    assert measure(*deep) == 0
    (line,) = [record.message for record in caplog.records if "bits per value" in record.message]
    assert f"{deep[0]} and 1 more: 10 bits per value, of which 8 are used" in line
    caplog.clear()
    assert measure(*pair(tmp_path / "plain", moving(2), moving(2))) == 0
    assert "bits per value" not in caplog.text


@pytest.mark.slow
def test_two_folders(measure: Measure, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = moving(5)
    pair(tmp_path, clip, clip, "same.mkv")
    pair(tmp_path, clip, clip // 2, "scene/a cat-0.mkv")
    pair(tmp_path, clip, noise(5, 40, 48), "scene/a cat-1.mkv")
    assert measure(tmp_path / "original", tmp_path / "generated") == 0
    contents = written(tmp_path)
    assert [video["name"] for video in contents["videos"]] == ["same.mkv", "scene/a cat-0.mkv", "scene/a cat-1.mkv"]
    assert [video["identical"] for video in contents["videos"]] == [True, False, False]
    assert contents["videos"][0]["psnr"] is None and contents["summary"]["identical"] == 1
    mean = (expected_psnr(clip, clip // 2) + expected_psnr(clip, noise(5, 40, 48))) / 2
    assert contents["summary"]["psnr"]["mean"] == pytest.approx(mean)
    out = capsys.readouterr().out
    assert "identical, left out of the mean" in out
    assert next(line for line in out.splitlines() if line.startswith("mean")).split()[4:6] == ["2", f"{mean:.2f}"]
    assert (tmp_path / "out" / "scene" / "a cat-1.mkv.png").is_file()


@pytest.mark.parametrize("place", ["metrics.json", "video.mkv.png", "videos.csv", "frames.csv"])
def test_files_of_others_are_not_replaced(
    measure: Measure, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    files = pair(tmp_path, moving(3), noise(3, 40, 48))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / place).write_text("{}", encoding="utf-8")
    assert measure(*files) == 1
    assert f"{place} would be replaced, but this program has not left it" in caplog.text
    assert os.listdir(tmp_path / "out") == [place] and (tmp_path / "out" / place).read_text() == "{}"


def test_a_second_comparison_replaces_the_first_but_never_an_input(
    measure: Measure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = pair(tmp_path, moving(3), noise(3, 40, 48))
    assert measure(*files) == 0 and measure(*files) == 0
    (tmp_path / "a.mkv").hardlink_to(files[0])
    (tmp_path / "out" / "a.mkv.png").hardlink_to(files[0])
    before = files[0].read_bytes()
    assert measure(files[1], tmp_path / "a.mkv") == 1
    assert "a.mkv.png would be written, but it is the input of --generated_video" in caplog.text
    assert files[0].read_bytes() == before


def test_missing_videos_are_named(measure: Measure, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for side, name in (("original", "a"), ("original", "b"), ("generated", "b"), ("generated", "c")):
        write_lossless(tmp_path / side / f"{name}.mkv", noise(1))
    assert measure(tmp_path / "original", tmp_path / "generated") == 1
    assert "original lacks 1: c.mkv" in caplog.text and "generated lacks 1: a.mkv" in caplog.text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("generated", "fps", "said"),
    [
        (noise(5, 24, 36), 24, "sizes 32x24 and 36x24"),
        (noise(4), 24, "lengths 5 and 4 frames"),
        (noise(5), 12, "rates 24 and 12 frames per second"),
    ],
)
def test_what_does_not_fit_is_refused(
    measure: Measure, tmp_path: Path, caplog: pytest.LogCaptureFixture, generated: Tensor, fps: int, said: str
) -> None:
    files = pair(tmp_path, noise(5), generated, fps=fps)
    assert measure(*files) == 1
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1 and errors[0].endswith(f"{files[0]} and {files[1]}: {said}")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_sidecars_that_differ_are_warned_of(measure: Measure, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = pair(tmp_path, noise(3), noise(3, seed=1))
    same = {"seed": {"base": 1, "sample": "0"}, "prompt": "a cat", "attention_backend": "sdpa", "method": {"a": 1}}

    def warnings(original: object, generated: object) -> list[str]:
        for video, contents in zip(files, (original, generated), strict=True):
            text = contents if isinstance(contents, str) else json.dumps(contents)
            video.with_suffix(".json").write_text(text, encoding="utf-8")
        caplog.clear()
        assert measure(*files) == 0
        said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert [f"warning: {text}" for text in written(tmp_path)["videos"][0]["warnings"]] == said
        return said

    assert warnings(same, same | {"method": {"a": 2}}) == []
    for name, value in (("seed", {"base": 2, "sample": "0"}), ("prompt", "a dog"), ("attention_backend", "eager")):
        (said,) = warnings(same, same | {name: value})
        assert f"{name} differs, {same[name]!r} and {value!r}" in said
    assert len(warnings(same, same | {"seed": 3, "prompt": "x"})) == 2
    assert "cannot be read" in warnings(same, "{")[0]
    assert "is no sidecar of ours" in warnings([1], same)[0]
    files[0].with_suffix(".json").unlink()
    caplog.clear()
    assert measure(*files) == 0 and "WARNING" not in caplog.text


def test_flags_that_make_no_sense(measure: Measure, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = pair(tmp_path, noise(1), noise(1))
    assert measure(*files, "--batch", "0") == 1 and "--batch must be at least 1, got 0" in caplog.text
    with pytest.raises(SystemExit):
        measure(*files, "--batches", "3")


def test_the_flags_of_the_release(measure: Measure, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original, generated = pair(tmp_path, moving(2), noise(2, 40, 48))
    assert measure("--original_video", original, "--generated-video", generated) == 0
    named = written(tmp_path)
    assert (named["original"], named["generated"]) == (str(original), str(generated))
    assert measure(original, generated) == 0
    assert written(tmp_path) == named
    for arguments in (
        [original],
        ["--original_video", original],
        [original, generated, "--original_video", original],
        [original, "--generated_video", generated],
        [],
    ):
        with pytest.raises(SystemExit):
            measure(*arguments)
        assert "give two videos or folders: ORIGINAL GENERATED, or --original_video" in capsys.readouterr().err


def test_without_a_network_everything_but_lpips_is_computed(
    script: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(url: str, **options: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    files = pair(tmp_path, moving(2), noise(2, 40, 48))
    assert script.main([*map(str, files), "--device", "cpu", "--output_path", str(tmp_path / "out")]) == 0
    assert "LPIPS needs AlexNet's weights, which cannot be downloaded here (<urlopen error Name or" in caplog.text
    assert "name the file with --lpips_weights" in caplog.text
    contents = written(tmp_path)
    assert "cannot be downloaded" in contents["lpips_missing"] and contents["lpips_weights"] is None
    assert contents["videos"][0]["psnr"] > 0 and contents["videos"][0]["lpips"] is None


def test_lpips_weights_that_do_not_exist_are_an_error(
    script: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = pair(tmp_path, moving(1), noise(1, 40, 48))
    flags = ["--device", "cpu", "--output_path", str(tmp_path / "out"), "--lpips_weights", "no.pth"]
    assert script.main([*map(str, files), *flags]) == 1
    assert "error: LPIPS weights not found: no.pth" in caplog.text and not (tmp_path / "out").exists()


def test_the_shell_script_hands_its_arguments_on(tmp_path: Path) -> None:
    root = fake_checkout(tmp_path, "metric.sh")
    command = ["bash", str(root / "scripts" / "metric.sh"), "a b.mp4", "c.mp4", "--batch", "2"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [str(root / "scripts" / "metric.py"), *command[2:]]
    assert (root / "scripts" / "made").exists()


def test_drift_of_one_video(
    measure: Measure, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    darker = torch.stack([moving(14)[0] // (1 + second // 4) for second in range(14)])
    video = write_lossless(tmp_path / "long.mkv", darker, fps=4)
    assert measure("--drift", video) == 0
    contents = json.loads((tmp_path / "out" / "long.mkv.drift.json").read_text(encoding="utf-8"))
    assert contents["seconds"] == 3 and contents["frames_left_out"] == 2
    assert contents["figures"]["brightness"]["slope"] < -0.1
    assert "the last 2 frames are less than a second and left out" in caplog.text
    assert "brightness" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "long.mkv.drift.png") as picture:
        assert picture.size[0] > 500


def test_drift_refuses_what_is_no_video(measure: Measure, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert measure("--drift", tmp_path) == 1 and "is a folder" in caplog.text
    assert measure("--drift", tmp_path / "none.mp4") == 1 and "does not exist" in caplog.text
    assert not (tmp_path / "out").exists()
