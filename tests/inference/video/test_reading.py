"""Reading of images and videos: formats, frame rates, prefix rules, and what is refused."""

import logging
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from inference.video.reading import probe_video, read_image, read_video, select_prefix_frames

SIZE = 64


def grey_levels(count: int, step: int = 5) -> np.ndarray:
    """``count`` frames, the i-th filled with i * step: (count, SIZE, SIZE, 3) uint8."""
    levels = (np.arange(count) * step).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, SIZE, SIZE, 3)).copy()


def frame_numbers(video: torch.Tensor, step: int = 5) -> list[int]:
    """Which of :func:`grey_levels`' frames each frame shows."""
    return (video.float().mean((1, 2, 3)) / step).round().int().tolist()


def write_clip(path: Path, frames: np.ndarray, fps: int = 24, times: list[int] | None = None, **options: str) -> Path:
    """A video with next to no loss; ``times`` are presentation times in 1/fps seconds instead of 0, 1, 2, ..."""
    with av.open(str(path), "w", options=options) as container:
        if path.suffix == ".avi":  # which has no times for the B-frames of H.264
            stream = container.add_stream("mpeg4", rate=fps)
            stream.bit_rate = 8_000_000
        else:
            stream = container.add_stream("libx264", rate=fps, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = number if times is None else times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


# Images


def corner_image() -> Image.Image:
    """32x16, black with a red upper left quarter."""
    image = Image.new("RGB", (32, 16))
    image.paste((255, 0, 0), (0, 0, 16, 8))
    return image


def quarters(frame: torch.Tensor) -> list[list[int]]:
    """Mean red of the four quarters of (1, H, W, 3): [[upper left, upper right], [lower left, lower right]]."""
    red = frame[0, :, :, 0].float()
    height, width = red.shape
    blocks = red.reshape(2, height // 2, 2, width // 2).mean((1, 3))
    return blocks.round().int().tolist()


@pytest.mark.parametrize("extension", ["png", "bmp", "gif", "webp", "tiff", "jpg"])
def test_image_formats(tmp_path, extension):
    path = tmp_path / f"image.{extension}"
    corner_image().save(path, **({"lossless": True} if extension == "webp" else {}))
    frame = read_image(path, 16, 32)
    assert frame.shape == (1, 16, 32, 3) and frame.dtype == torch.uint8
    (upper_left, *others), lower = quarters(frame)
    assert upper_left > 240 and max(*others, *lower) < 15
    if extension != "jpg":  # no loss, no resampling
        assert torch.equal(frame[0], torch.from_numpy(np.array(corner_image())))


@pytest.mark.parametrize("mode", ["P", "1", "L", "LA", "RGBA", "PA", "CMYK"])
def test_image_modes(tmp_path, mode):
    image = Image.new("RGB", (16, 16), (255, 255, 255)).convert(mode)
    path = tmp_path / ("image.tiff" if mode in ("CMYK", "PA") else "image.png")
    if mode == "PA":
        image = image.convert("P")
    image.save(path)
    assert (read_image(path, 8, 8) == 255).all()


def test_sixteen_bit_grey_is_scaled(tmp_path):
    values = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "grey.png")
    frame = read_image(tmp_path / "grey.png", 16, 16)
    assert torch.equal(frame[0, :, :, 1].flatten().int(), torch.arange(256, dtype=torch.int32))


def test_transparency_is_shown_on_white(tmp_path):
    image = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 8, 16))
    image.save(tmp_path / "clear.png")
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([200, 0, 0, 0, 0, 255])
    palette.paste(1, (0, 0, 8, 16))
    palette.save(tmp_path / "palette.png", transparency=0)
    for name in ("clear.png", "palette.png"):
        frame = read_image(tmp_path / name, 16, 16)[0]
        assert frame[0, 0].tolist() == [0, 0, 255] and frame[0, 15].tolist() == [255, 255, 255]


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by 90 degrees
    corner_image().save(tmp_path / "turned.png", exif=exif)
    assert quarters(read_image(tmp_path / "turned.png", 32, 16)) == [[0, 255], [0, 0]]


def test_image_fits(tmp_path):
    # A white 32x16 picture with black left and right eighths.
    image = Image.new("RGB", (32, 16), "white")
    image.paste("black", (0, 0, 4, 16))
    image.paste("black", (28, 0, 32, 16))
    image.save(tmp_path / "image.png")
    stretched = read_image(tmp_path / "image.png", 16, 16)[0, :, :, 0]
    assert stretched[8, 0] < 20 and stretched[8, 8] > 235 and stretched[0, 8] > 235
    cropped = read_image(tmp_path / "image.png", 16, 16, fit="crop")
    assert (cropped == 255).all()
    padded = read_image(tmp_path / "image.png", 16, 16, fit="pad")[0, :, :, 0]
    assert padded[0, 8] == 0 and padded[15, 8] == 0 and padded[8, 8] == 255
    with pytest.raises(ValueError, match="fit must be"):
        read_image(tmp_path / "image.png", 16, 16, fit="squeeze")


def test_bad_images(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
        read_image(tmp_path / "nothing.png", 16, 16)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_image(tmp_path, 16, 16)
    path = tmp_path / "image.png"
    path.touch()
    with pytest.raises(ValueError, match="0 bytes"):
        read_image(path, 16, 16)
    path.write_text("a picture of a cat")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        read_image(path, 16, 16)
    Image.new("RGB", (1, 1)).save(path)
    with pytest.raises(ValueError, match="1x1 pixels; pictures below 8x8 are refused"):
        read_image(path, 16, 16)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:6000])
    with pytest.raises(ValueError, match="truncated"):
        read_image(path, 16, 16)
    Image.new("F", (16, 16)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match="floating point"):
        read_image(tmp_path / "float.tiff", 16, 16)


# Videos


@pytest.mark.parametrize("extension", ["mp4", "mov", "mkv", "avi", "ts"])
def test_video_formats(tmp_path, extension):
    path = write_clip(tmp_path / f"clip.{extension}", grey_levels(30))
    video = read_video(path, 24, 32, 48)
    assert video.shape == (30, 32, 48, 3) and video.dtype == torch.uint8
    assert frame_numbers(video) == list(range(30))


def fps_filter(times: list[Fraction], fps: int, end: Fraction) -> list[int]:
    """ffmpeg's rule: a frame stands from its time, rounded to output frames, to that of the next."""

    def rounded(time: Fraction) -> int:
        return int(time * fps + Fraction(1, 2))

    starts = [rounded(time) for time in times]
    return [max(i for i, start in enumerate(starts) if start <= k) for k in range(rounded(end))]


@pytest.mark.parametrize(
    ("source_fps", "fps", "count"), [(30, 24, 45), (24, 24, 40), (10, 24, 20), (25, 8, 50), (50, 24, 7)]
)
def test_frame_rate_conversion(tmp_path, source_fps, fps, count):
    path = write_clip(tmp_path / "clip.mp4", grey_levels(count), source_fps)
    times = [Fraction(number, source_fps) for number in range(count)]
    expected = fps_filter(times, fps, Fraction(count, source_fps))
    assert frame_numbers(read_video(path, fps, SIZE, SIZE)) == expected


def test_variable_frame_rate(tmp_path):
    ticks = [0, 1, 2, 9, 10, 30, 31, 47]
    path = write_clip(tmp_path / "clip.mp4", grey_levels(8), 30, times=ticks)
    expected = fps_filter([Fraction(tick, 30) for tick in ticks], 24, Fraction(48, 30))
    assert frame_numbers(read_video(path, 24, SIZE, SIZE)) == expected


def test_rotated_video(tmp_path):
    frames = np.broadcast_to(np.array(corner_image().resize((64, 32), 0)), (3, 32, 64, 3))
    path = write_clip(tmp_path / "clip.mp4", frames)
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    # By 90 degrees clockwise, as phones held upright write it.
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    path.write_bytes(content)
    (upper_left, upper_right), lower = quarters(read_video(path, 24, 64, 32)[:1])
    assert upper_right > 240 and max(upper_left, *lower) < 15


@pytest.mark.parametrize("count", [1, 23, 24, 47, 48, 130])
def test_selecting_while_reading_equals_selecting_afterwards(tmp_path, count):
    path = write_clip(tmp_path / "clip.mp4", grey_levels(count, step=1))
    everything = read_video(path, 24, 16, 16)
    assert everything.shape[0] == count
    for rule in ("first", "last"):
        assert torch.equal(read_video(path, 24, 16, 16, select=rule), select_prefix_frames(everything, 24, rule))


@pytest.mark.parametrize(
    ("count", "fps", "rule", "expected"),
    [
        (96, 24, "first", range(32)),
        (20, 24, "first", range(20)),
        (96, 24, "last", range(96)),
        (100, 24, "last", range(4, 100)),
        (24, 24, "last", range(24)),
        (23, 24, "last", [22]),
        (1, 24, "last", [0]),
        (500, 24, "last", range(380, 500)),
        (41, 8, "last", range(1, 41)),
    ],
)
def test_prefix_rules(count, fps, rule, expected):
    assert select_prefix_frames(torch.arange(count), fps, rule).tolist() == list(expected)


def test_prefix_rules_refuse():
    with pytest.raises(ValueError, match="no frames"):
        select_prefix_frames(torch.zeros(0, 8, 8, 3), 24, "last")
    with pytest.raises(ValueError, match="'middle'"):
        select_prefix_frames(torch.zeros(3, 8, 8, 3), 24, "middle")


def test_cut_off_video_gives_its_intact_frames(tmp_path, caplog):
    # The table of frames in front, as for streaming; then half of the pictures are missing.
    frames = np.random.default_rng(0).integers(0, 255, (48, SIZE, SIZE, 1), dtype=np.uint8).repeat(3, axis=3)
    path = write_clip(tmp_path / "clip.mp4", frames, movflags="faststart")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with caplog.at_level(logging.WARNING):
        video = read_video(path, 24, SIZE, SIZE)
    assert 10 < video.shape[0] < 40
    assert "is damaged or incomplete" in caplog.text and "of 48 frames could be read" in caplog.text
    # An intact frame is close to one that was written; a patched-up one would be far from all of this noise.
    distances = (video[:, None, ..., 0].float() - torch.from_numpy(frames[None, ..., 0]).float()).abs().mean((2, 3))
    assert distances.min(1).values.max() < 4


def test_intact_video_gives_no_warning(tmp_path, caplog):
    path = write_clip(tmp_path / "clip.mp4", grey_levels(10))
    with caplog.at_level(logging.WARNING):
        read_video(path, 24, SIZE, SIZE)
    assert not caplog.records


def test_bad_videos(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.mp4"):
        read_video(tmp_path / "nothing.mp4", 24, 16, 16)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_video(tmp_path, 24, 16, 16)
    path = tmp_path / "clip.mp4"
    path.touch()
    with pytest.raises(ValueError, match="0 bytes"):
        read_video(path, 24, 16, 16)
    path.write_text("this is not a video\n" * 100)
    with pytest.raises(ValueError, match=r"clip.mp4 cannot be read as a video"):
        read_video(path, 24, 16, 16)
    with pytest.raises(ValueError, match=r"has no video stream \(it has: audio\)"):
        read_video(write_sound(tmp_path / "sound.mp4"), 24, 16, 16)
    # The table of frames stands at the end of this one.
    write_clip(path, grey_levels(30))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="cannot be read as a video"):
        read_video(path, 24, 16, 16)
    with pytest.raises(ValueError, match="4x4 pixels"):
        read_video(write_clip(tmp_path / "tiny.mp4", grey_levels(3)[:, :4, :4]), 24, 16, 16)
    with pytest.raises(ValueError, match="0 fps"):
        read_video(path, 0, 16, 16)


def test_a_playlist_is_not_followed(tmp_path):
    """A text file must not make the reader open other files."""
    write_clip(tmp_path / "target.ts", grey_levels(10))
    playlist = tmp_path / "clip.mp4"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\ntarget.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(ValueError, match="cannot be read as a video"):
        read_video(playlist, 24, 16, 16)
    playlist.write_text("ffconcat version 1.0\nfile target.ts\n")
    with pytest.raises(ValueError, match="cannot be read as a video"):
        read_video(playlist, 24, 16, 16)


def test_probe(tmp_path):
    info = probe_video(write_clip(tmp_path / "clip.mp4", grey_levels(45)[:, :32], 30))
    assert (info.frames, info.fps, info.duration, info.width, info.height) == (45, 30.0, 1.5, 64, 32)
    (tmp_path / "clip.mp4").write_text("no video")
    with pytest.raises(ValueError, match="cannot be read as a video"):
        probe_video(tmp_path / "clip.mp4")
