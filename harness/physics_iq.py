"""The samples that Physics-IQ wants, original and Verified (docs/sampling.md, "Physics-IQ").

Every video is exactly 5 s at 24 frames per second and shows what happens after the conditioning clip or frame.
"""

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.sample_task import Listing, SampleTask, make_task, name_problem, prompt_problem, refuse

FPS = 24
SECONDS = 5
FRAMES = SECONDS * FPS

Mode = Literal["i2v", "v2v"]
PromptSet = Literal["op", "bpp"]

COLUMNS = ("scenario", "description", "category", "generated_video_name")
NAME = re.compile(r"(?P<id>\d{4})_(?P<view>perspective-(?:left|center|right))_(?P<rest>.+)\.mp4")
TAKE = re.compile(r"take-(\d)")
# Where the official data and code trees have the prompts; "original" is the original benchmark.
DESCRIPTIONS: dict[PromptSet | Literal["original"], tuple[str, ...]] = {
    "original": ("descriptions.csv", "descriptions_original.csv"),
    "op": ("descriptions_original.csv", "descriptions.csv"),
    "bpp": ("best_practice/descriptions_base.csv",),
}


@dataclass(frozen=True)
class Scenario:
    """One view of one scenario, as a row of the descriptions has it."""

    name: str  # of the generated video
    description: str
    category: str

    @property
    def parts(self) -> tuple[str, str, str]:
        """Id, view and trimmed name."""
        match = NAME.fullmatch(self.name)
        if match is None:
            raise ValueError(f"{self.name!r} is no name of a generated video (NNNN_perspective-VIEW_NAME.mp4)")
        return match["id"], match["view"], match["rest"]


def list_original(data: Path, base_seed: int, model_name: str, mode: Mode, descriptions: Path | None = None) -> Listing:
    """The 198 videos of the original benchmark, MODEL/GENERATED_NAME; groups are the categories.

    Args:
        data: the folder with ``split-videos`` and ``switch-frames``, or the one around it.
        base_seed: what all samples' seeds are derived from.
        model_name: names the folder.
        mode: "i2v" from the switch frame, "v2v" from the 24 fps conditioning clip.
        descriptions: the CSV, where it is not found at its official place.

    Raises:
        FileNotFoundError, ValueError: a row or a conditioning file that is missing or not what it should be.
    """
    tree = find_tree(data)
    scenarios = read_scenarios(descriptions or find_descriptions(tree, "original"))
    tasks = run_tasks(tree, scenarios, mode, model_name, f"physics_iq/{mode}", base_seed)
    categories = dict.fromkeys(scenario.category for scenario in scenarios)
    pairs = list(zip(scenarios, tasks, strict=True))
    groups = {name: tuple(task for scenario, task in pairs if scenario.category == name) for name in categories}
    return Listing(tuple(tasks), groups)


def list_verified(
    data: Path,
    base_seed: int,
    model_name: str,
    mode: Mode,
    prompt_sets: Iterable[PromptSet] = ("op",),
    runs: int = 4,
) -> Listing:
    """The videos of Physics-IQ Verified, MODEL-SET-run_NN/GENERATED_NAME; groups are the run folders.

    Every run has noise of its own; the prompt sets share it, so that they can be compared pairwise.
    """
    tree = find_tree(data)
    groups: dict[str, tuple[SampleTask, ...]] = {}
    for prompt_set in dict.fromkeys(prompt_sets):
        scenarios = read_scenarios(find_descriptions(tree, prompt_set))
        for run in range(1, runs + 1):
            folder = f"{model_name}-{prompt_set}-run_{run:02d}"
            identity = f"physics_iq_verified/{mode}/run_{run:02d}"
            groups[folder] = tuple(run_tasks(tree, scenarios, mode, folder, identity, base_seed))
    return Listing(tuple(task for tasks in groups.values() for task in tasks), groups)


def run_tasks(
    tree: Path, scenarios: list[Scenario], mode: Mode, folder: str, identity: str, base_seed: int
) -> list[SampleTask]:
    """One task per scenario; ValueError names every conditioning file that is missing."""
    wanted = [(scenario, conditioning_path(tree, scenario, mode)) for scenario in scenarios]
    refuse(
        (f"{scenario.name} needs {path.relative_to(tree)}" for scenario, path in wanted if not path.is_file()),
        f"conditioning files missing in {tree}",
    )
    return [
        make_task(folder, scenario.name, scenario.description, f"{identity}/{scenario.name}", base_seed, path)
        for scenario, path in wanted
    ]


def conditioning_path(tree: Path, scenario: Scenario, mode: Mode) -> Path:
    """The switch frame, or the conditioning clip of the first take at 24 fps."""
    number, view, rest = scenario.parts
    if mode == "i2v":
        return tree / "switch-frames" / f"{number}_switch-frames_anyFPS_{view}_{rest}.jpg"
    name = f"{number}_conditioning-videos_{FPS}FPS_{view}_take-1_{rest}.mp4"
    return tree / "split-videos" / "conditioning" / f"{FPS}FPS" / name


def find_tree(data: Path) -> Path:
    """The folder that holds ``split-videos`` or ``switch-frames``: ``data`` or the official name below it."""
    candidates = (data, data / "physics-IQ-benchmark", data / "physics-IQ-benchmark-verified")
    for folder in candidates:
        if (folder / "split-videos").is_dir() or (folder / "switch-frames").is_dir():
            return folder
    raise FileNotFoundError(
        f"no Physics-IQ data in {data}: it or physics-IQ-benchmark/ in it must hold split-videos/, switch-frames/"
    )


def find_descriptions(tree: Path, prompt_set: PromptSet | Literal["original"]) -> Path:
    """The CSV of a prompt set, in or beside the data."""
    folders = (tree / "descriptions", tree, tree.parent / "descriptions", tree.parent)
    candidates = [folder / name for name in DESCRIPTIONS[prompt_set] for folder in folders]
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(f"no descriptions ({prompt_set}) for {tree}: tried {', '.join(map(str, candidates))}")


def read_scenarios(path: Path) -> list[Scenario]:
    """The rows of the first takes, in order of their ids, which must run from 0001 without gaps."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        refuse(missing, f"{path} lacks columns (needed are {', '.join(COLUMNS)})")
        rows = list(reader)
    found, problems = [], []
    for number, row in enumerate(first_takes(rows), 1):
        values = [(row[name] or "").strip() for name in COLUMNS[1:]]
        scenario = Scenario(values[2], values[0], values[1])
        wrong = row_problem(scenario, number)
        if wrong:
            problems.append(f"{scenario.name or row['scenario']!r}: {wrong}")
        found.append(scenario)
    refuse(problems, f"rows of {path} that no sample can be made of")
    if not found:
        raise ValueError(f"{path} has no rows")
    return found


def first_takes(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows of the first take: by the scenario's name, or, where none names its take, the first half."""
    takes = [TAKE.search(row["scenario"] or "") for row in rows]
    if any(takes):
        return [row for row, take in zip(rows, takes, strict=True) if take is not None and take[1] == "1"]
    return rows[: len(rows) // 2]


def row_problem(scenario: Scenario, number: int) -> str | None:
    """What is wrong with row ``number`` of the first takes, or None."""
    match = NAME.fullmatch(scenario.name)
    if match is None:
        return "generated_video_name is not NNNN_perspective-VIEW_NAME.mp4"
    if int(match["id"]) != number:
        return f"id {match['id']} where {number:04d} follows: the ids must run from 0001 without gaps"
    if not scenario.description:
        return "the description is empty"
    return name_problem(scenario.name) or prompt_problem(scenario.description)
