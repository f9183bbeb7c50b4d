"""What an upload may be, looked at before it is decoded: whoever can reach the page can send anything."""

from pathlib import Path

import av
from PIL import Image, UnidentifiedImageError

MOST_BYTES = 64 * 2**20
MOST_PIXELS = 50_000_000
MOST_CLIP_SECONDS = 600.0


def check_image(path: Path) -> None:
    """ValueError where the file is no picture, or one of too many pixels."""
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError("the upload is no picture that can be read") from error
    _check_pixels(width, height)


def check_clip(path: Path) -> None:
    """ValueError where the file is no video, or one that is too large or too long."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("the upload has no video in it")
            stream = container.streams.video[0]
            width, height = stream.width, stream.height
            seconds = 0.0 if container.duration is None else container.duration / av.time_base
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError("the upload is no video that can be read") from error
    _check_pixels(width, height)
    if seconds > MOST_CLIP_SECONDS:
        raise ValueError(f"the clip has {seconds:.0f} s; at most {MOST_CLIP_SECONDS:.0f} s are taken")


def _check_pixels(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise ValueError(f"the upload has {width}x{height} pixels; at most {MOST_PIXELS / 1e6:.0f} million are taken")


def kind_of(beginning: bytes) -> str | None:
    """By its first bytes: ``image`` (PNG, JPEG, WebP, GIF), ``clip`` (MP4, MOV, WebM, MKV, AVI), or neither."""
    if beginning.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8")):
        return "image"
    if beginning[:4] == b"RIFF":
        return {b"WEBP": "image", b"AVI ": "clip"}.get(beginning[8:12])
    if beginning[4:8] in (b"ftyp", b"moov") or beginning.startswith(b"\x1aE\xdf\xa3"):
        return "clip"
    return None
