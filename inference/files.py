"""Files that appear under their name when they are complete, and the hidden ones that they are until then."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def hidden_beside(path: Path, ending: str) -> Path:
    """A hidden file for work on ``path``, in its folder. Its name has a fixed length, however long that of ``path``."""
    return path.with_name(f".~{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.{ending}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path`` that takes its name once it is complete: a reader never sees half of it."""
    part = hidden_beside(path, f"{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def longest_name(folder: Path) -> int:
    """The most bytes that a file's name may have in ``folder``."""
    return os.pathconf(folder, "PC_NAME_MAX")
