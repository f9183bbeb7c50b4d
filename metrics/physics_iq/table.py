"""The views of Physics-IQ as ``descriptions.csv`` lists them, and where a benchmark folder is (docs/scores.md,
"Physics-IQ").
"""

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

VIEWS = ("perspective-left", "perspective-center", "perspective-right")
FOLDER_NAMES = ("physics-IQ-benchmark", "physics-IQ-benchmark-verified")
COLUMNS = ("scenario", "description", "category", "generated_video_name")
MOST_SHOWN = 20

# The prompts of the original benchmark; the two sets of Verified are the original ones and "best practice".
PromptSet = Literal["original", "op", "bpp"]
# Where the official data and code trees have them.
DESCRIPTIONS: dict[PromptSet, tuple[str, ...]] = {
    "original": ("descriptions.csv", "descriptions_original.csv"),
    "op": ("descriptions_original.csv", "descriptions.csv"),
    "bpp": ("best_practice/descriptions_base.csv",),
}

_GENERATED_NAME = re.compile(rf"(\d{{4}})_({'|'.join(VIEWS)})_(.+)\.mp4")


@dataclass(frozen=True)
class ScenarioView:
    """One scenario seen from one side, for which one video is generated."""

    number: str
    view: str
    scenario: str
    category: str
    description: str

    @property
    def generated_name(self) -> str:
        return f"{self.number}_{self.view}_{self.scenario}.mp4"


def read_descriptions(path: Path) -> list[ScenarioView]:
    """The views that ``path`` lists, in order of their numbers; of the rows of both takes the first counts.

    Raises ValueError for missing columns, and with every row that is none: names that are no ``NNNN_VIEW_NAME.mp4``,
    numbers that do not run from 0001 without gaps, empty descriptions.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path} has no column {', '.join(missing)}; it has: {', '.join(reader.fieldnames or ())}")
        rows = [(reader.line_num, *((row[name] or "").strip() for name in COLUMNS[1:])) for row in reader]
    views: dict[tuple[str, str], ScenarioView] = {}
    problems = []
    for line, description, category, name in rows:
        match = _GENERATED_NAME.fullmatch(name)
        if match is None:
            problems.append(f"line {line}: {name!r} is not of the form NNNN_perspective-..._NAME.mp4")
            continue
        number, view, scenario = match.groups()
        if (scenario, view) in views:
            continue
        views[scenario, view] = ScenarioView(number, view, scenario, category, description)
        if not description:
            problems.append(f"line {line}: the description of {name} is empty")
        # After a gap every number would differ: only the first of them is named.
        if int(number) != len(views) and not problems:
            problems.append(f"line {line}: {name} where number {len(views):04d} follows; they run from 0001, no gaps")
    if not rows:
        raise ValueError(f"{path} lists no videos")
    if problems:
        more = [f"and {len(problems) - MOST_SHOWN} more"] if len(problems) > MOST_SHOWN else []
        raise ValueError("\n  ".join([f"{path} cannot be used:", *problems[:MOST_SHOWN], *more]))
    return list(views.values())


def find_benchmark(data: Path) -> Path:
    """The folder that holds ``split-videos`` or ``switch-frames``: ``data`` or the official name below it."""
    for folder in (data, *(data / name for name in FOLDER_NAMES)):
        if (folder / "split-videos").is_dir() or (folder / "switch-frames").is_dir():
            return folder
    raise FileNotFoundError(
        f"no Physics-IQ data in {data}: it, or {' or '.join(FOLDER_NAMES)} in it, must hold split-videos, switch-frames"
    )


def split_folder(root: Path, part: Literal["conditioning", "testing"], fps: float) -> Path:
    """The folder of ``split-videos`` with the clips of one rate; ``conditioning-videos`` is ``conditioning``, too.

    The official description calls the folders one way and its downloader another. Neither need be there.
    """
    folders = [root / "split-videos" / name / f"{int(fps)}FPS" for name in (part, f"{part}-videos")]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def find_descriptions(data: Path, prompts: PromptSet = "original") -> Path:
    """The table with the ``prompts`` for the benchmark in ``data``, in it or beside it."""
    root = find_benchmark(data)
    folders = dict.fromkeys((root / "descriptions", root, root.parent / "descriptions", root.parent))
    candidates = [folder / name for name in DESCRIPTIONS[prompts] for folder in folders]
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(f"no descriptions ({prompts}) for {root}: tried {', '.join(map(str, candidates))}")
