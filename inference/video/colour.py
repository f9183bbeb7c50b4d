"""Colours of what is read: profiles of pictures, matrices of clips, transparency.

(docs/conditioning.md, "Prefix media")
"""

import io
import logging
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageCms

logger = logging.getLogger(__name__)

# A clip that does not say its matrix has BT.709 from this many lines on, as players assume.
FIRST_HD_LINES = 720
UNSTATED = 2  # in ISO/IEC 23091-4, and ffmpeg's AVCOL_SPC_UNSPECIFIED


def to_srgb(image: Image.Image, path: Path) -> Image.Image:
    """``image`` with the colours that its profile means, in sRGB; as it is where it has none, or a damaged one, which a
    warning says. Transparency stays.
    """
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK", "L", "P"):
        return image
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    colours = image.convert("RGB") if alpha is not None else image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return image
        converted = ImageCms.profileToProfile(colours, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        logger.warning("%s: its colour profile cannot be used (%s); its numbers are taken as sRGB", path, error)
        return image
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of every mode Pillow reads."""
    if image.mode == "F":
        raise OSError("floating point pictures have no agreed range of values; convert it to 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # 16-bit grey, which Pillow's own conversion would clip at 255.
        values = np.asarray(image, dtype=np.float64)
        if values.min() < 0 or values.max() > 65535:
            raise OSError(f"grey values from {values.min():g} to {values.max():g}; 0 to 65535 are supported")
        return Image.fromarray((values / 257.0).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def assumed_matrix(frame: av.VideoFrame, name: object) -> str:
    """The matrix that ffmpeg's scale filter is to assume for the frames of a clip: "auto" where they state one."""
    brightness_and_colour = any(component.is_luma for component in frame.format.components) and not frame.format.is_rgb
    if not brightness_and_colour or int(frame.colorspace) != UNSTATED or frame.height < FIRST_HD_LINES:
        return "auto"
    logger.info("%s does not say its colour matrix: BT.709 is assumed, since it has %d lines", name, frame.height)
    return "bt709"


def has_alpha(frame: av.VideoFrame) -> bool:
    return any(component.is_alpha for component in frame.format.components)


def on_white(pixels: np.ndarray) -> np.ndarray:
    """``pixels`` (H, W, 4), RGBA, over white: (H, W, 3)."""
    alpha = pixels[..., 3:].astype(np.uint16)
    return ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
