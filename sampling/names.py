"""Whether the disk below an output folder keeps every name of a listing apart (docs/sampling.md, "VBench").

Names are prompts verbatim. Some disks ignore case (macOS, Windows, many shares), some compose letters and accents;
there one of two samples would replace the other without a word.
"""

import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from sampling.task import SampleTask, refuse


def check_names(output: Path, tasks: Iterable[SampleTask]) -> None:
    """Try the names that differ only in case or composition in ``output``, which is made where it is not there.

    Raises:
        ValueError: the disk takes some of them for one name; says which.
    """
    if alike := alike_names(task.path for task in tasks):
        output.mkdir(parents=True, exist_ok=True)
        merged = [(first, other) for first, other in alike if is_one_name(output, first.name, other.name)]
        refuse(
            (f"{first.parent}: {first.name!r} and {other.name!r}" for first, other in merged),
            f"the disk of {output} takes names that differ only in case or in composed letters for one, so samples "
            "would replace each other; choose an --output on a disk that keeps these apart",
        )


def alike_names(paths: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Pairs of paths that are one path but for case and for how accents are composed."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        groups[unicodedata.normalize("NFC", unicodedata.normalize("NFD", str(path)).casefold())].append(path)
    return [(first, other) for first, *others in groups.values() for other in others]


def is_one_name(folder: Path, first: str, other: str) -> bool:
    """Whether a file called ``first`` answers to ``other`` on the disk of ``folder``; nothing is left there."""
    with tempfile.TemporaryDirectory(prefix=".~names-", dir=folder) as trial:
        (Path(trial) / first).touch()
        return (Path(trial) / other).exists()
