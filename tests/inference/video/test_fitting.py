"""Pictures of another shape, with other colours, or with transparency: what is shown, and that it is said."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from inference.video.fitting import fitting, size_like
from inference.video.reading import picture_size, read_image, read_video


@pytest.mark.parametrize(
    ("source", "target", "fit", "scaled", "said"),
    [
        ((90, 160), (64, 64), "crop", (64, 114), "44% of its width are cut off"),
        ((160, 90), (64, 64), "crop", (114, 64), "44% of its height are cut off"),
        ((90, 160), (64, 64), "pad", (36, 64), "black bars take 44% of the height"),
        ((90, 160), (64, 64), "stretch", (64, 64), "it is stretched"),
        ((65, 64), (64, 64), "crop", (64, 64), None),  # nobody sees that
        ((720, 1280), (72, 128), "pad", (72, 128), None),
    ],
)
def test_shapes(
    source: tuple[int, int], target: tuple[int, int], fit: str, scaled: tuple[int, int], said: str | None
) -> None:
    way = fitting(source, target, fit)
    assert way.scaled == scaled
    line = way.describe("it")
    assert line is None if said is None else said in line


@pytest.mark.parametrize("source", [(720, 1280), (1920, 1080), (500, 500), (1080, 2560)])
def test_a_size_of_the_shape_of_the_input(source: tuple[int, int]) -> None:
    height, width = size_like(source, 480 * 480, 16)
    assert height % 16 == width % 16 == 0
    assert 0.85 < height * width / 480**2 < 1.15
    assert height / width == pytest.approx(source[0] / source[1], rel=0.06)


def clip(path: Path, frames: np.ndarray, pixels: str = "rgb24", codec: str = "libx264rgb", **colours: int) -> Path:
    """``frames`` (T, H, W, C), losslessly, at 24 a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24, options={"qp": "0"} if "264" in codec else {})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        for name, value in colours.items():
            setattr(stream.codec_context, name, value)
        for array in frames:
            frame = av.VideoFrame.from_ndarray(array, format={3: "rgb24", 4: "rgba"}[frames.shape[-1]])
            container.mux(stream.encode(frame.reformat(format=pixels, dst_colorspace=colours.get("colorspace"))))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_clips_are_fitted_like_images(tmp_path: Path, fit: str) -> None:
    picture = np.full((40, 80, 3), 100, np.uint8)
    picture[:, :20], picture[:, 60:] = (250, 0, 0), (0, 0, 250)
    Image.fromarray(picture).save(tmp_path / "image.png")
    video = clip(tmp_path / "clip.mkv", np.repeat(picture[None], 3, axis=0))
    from_image = read_image(tmp_path / "image.png", 40, 40, fit)[0].int()
    from_clip = read_video(video, 24, 40, 40, fit=fit)[1].int()
    assert picture_size(video, "video") == picture_size(tmp_path / "image.png", "image") == (40, 80)
    assert (from_image - from_clip).abs().float().mean() < 3
    corners = from_clip[20, 0].tolist(), from_clip[0, 20].tolist()
    expected = {"crop": ([100] * 3, [100] * 3), "pad": ([250, 0, 0], [0] * 3), "stretch": ([250, 0, 0], [100] * 3)}[fit]
    assert np.abs(np.array(corners) - np.array(expected)).max() <= 3


def exchanged_profile() -> bytes:
    """A profile in which red and green are exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for plain in ("sRGB".encode("utf-16-be"), b"sRGB"):
        profile = profile.replace(plain, plain.replace(b"s", b"t"))
    table = profile[:300].replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    return table + profile[300:]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colour_profiles_are_applied(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGB", (32, 32), (200, 30, 10)).convert(mode, palette=Image.Palette.ADAPTIVE)
    image.save(tmp_path / "image.png", icc_profile=exchanged_profile())
    assert (read_image(tmp_path / "image.png", 32, 32)[0, 5, 5] - torch.tensor([30, 200, 10])).abs().max() <= 6


def test_a_damaged_profile_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGB", (32, 32), (200, 30, 10)).save(tmp_path / "image.png", icc_profile=b"no profile at all")
    assert read_image(tmp_path / "image.png", 32, 32)[0, 5, 5].tolist() == [200, 30, 10]
    assert "its colour profile cannot be used" in caplog.text


def test_an_untagged_clip_of_720_lines_has_the_matrix_of_hd(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    colour = np.full((2, 720, 64, 3), (200, 60, 30), np.uint8)
    untagged = clip(tmp_path / "hd.mkv", colour, "yuv444p", "libx264")
    small = clip(tmp_path / "small.mkv", colour[:, :64], "yuv444p", "libx264")
    # Both are made with BT.601; the one of 720 lines is read as if made with BT.709.
    assert (read_video(small, 24, 64, 64)[0, 9, 9].int() - torch.tensor([200, 60, 30])).abs().max() <= 3
    assert (read_video(untagged, 24, 64, 64)[0, 9, 9].int() - torch.tensor([200, 60, 30])).abs().max() > 8
    assert caplog.text.count("BT.709 is assumed, since it has 720 lines") == 1


def test_transparent_clips_are_shown_on_white(tmp_path: Path) -> None:
    frames = np.zeros((2, 32, 32, 4), np.uint8)
    frames[:, :16] = (250, 0, 0, 255)
    video = clip(tmp_path / "clip.mov", frames, "rgba", "png")
    read = read_video(video, 24, 32, 32)[0]
    assert read[5, 5].tolist() == [250, 0, 0] and read[25, 5].tolist() == [255, 255, 255]


def test_what_of_a_clip_continues_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    frames = np.random.default_rng(0).integers(0, 255, (60, 32, 32, 3), dtype=np.uint8)
    read_video(clip(tmp_path / "long.mkv", frames), 24, 32, 32, "last")
    assert "long.mkv: the last 48 of 60 frames (at 24 a second) continue" in caplog.text
    assert len(read_video(clip(tmp_path / "short.mkv", frames[:10]), 24, 32, 32, "last")) == 1
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "short.mkv is shorter than a second (10 frames at 24 a second): its last frame is used" in warning
