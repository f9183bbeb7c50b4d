"""Videos with more than 8 bits per value: figures are of 8, and decoders do not agree on how to get there."""

from collections.abc import Iterable
from pathlib import Path

import av
from av.error import FFmpegError

READ_BITS = 8


def bits_of(path: Path) -> int:
    """Bits per value of a video's stream, by its header; 8 where that does not say, or there is no video."""
    try:
        with av.open(str(path)) as container:
            shape = container.streams.video[0].codec_context.format if container.streams.video else None
            return READ_BITS if shape is None else max(component.bits for component in shape.components)
    except (FFmpegError, OSError):
        return READ_BITS  # whoever reads its frames says what is wrong with it


def deep_note(paths: Iterable[Path]) -> str | None:
    """One line on the videos among ``paths`` that have more than 8 bits per value; None where none has."""
    deep = {path: bits for path in paths if (bits := bits_of(path)) > READ_BITS}
    if not deep:
        return None
    others = f" and {len(deep) - 1} more" if len(deep) > 1 else ""
    return (
        f"{next(iter(deep))}{others}: {max(deep.values())} bits per value, of which {READ_BITS} are used; another "
        "decoder may round them otherwise, so figures of other programs can differ"
    )
