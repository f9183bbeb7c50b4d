"""Files that appear under their name when they are complete, the hidden ones that they are until then, locks, and how
JSON and YAML are read.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import yaml


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


def open_locked(path: Path, refusal: str) -> IO[bytes]:
    """``path``, made where it is missing, for reading and writing without a buffer; ours alone until it is closed.

    Raises BlockingIOError, which says ``refusal``, where another process holds it.
    """
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise BlockingIOError(error.errno, refusal) from None
        except OSError:
            return file  # a file system without locks
        # Whoever had the lock may have given the file another name between our opening and our locking it.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                return file
        file.close()


def longest_name(folder: Path) -> int:
    """The most bytes that a file's name may have in ``folder``."""
    return os.pathconf(folder, "PC_NAME_MAX")


def read_text(path: Path) -> str:
    """What a text file holds, in UTF-8, with or without the mark that some editors put in front (BOM).

    Raises:
        ValueError: it is not UTF-8, or no file but a pipe or a device, which might never end.
        OSError: it is not there, or a folder.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path} is no file but a pipe or a device")
    return path.read_text(encoding="utf-8-sig")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: it is not JSON or not UTF-8, or a key is given twice; ``path`` is not in the message.
    """
    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=_refuse_duplicates)
    except RecursionError:
        raise ValueError("brackets are nested too deep") from None


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"given twice: {', '.join(twice)}")
    return dict(pairs)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but 1e-2 is a number, as in YAML 1.2, and a key given twice an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"given twice: {', '.join(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        ValueError: it is not YAML or not UTF-8, or a key is given twice; ``path`` is not in the message.
    """
    try:
        return yaml.load(read_text(path), Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("brackets are nested too deep") from None
