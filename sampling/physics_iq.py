"""The samples that Physics-IQ wants, original and Verified (docs/sampling.md, "Physics-IQ").

Every video is exactly 5 s at 24 frames per second and shows what happens after the conditioning clip or frame.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from metrics.physics_iq.table import (
    ScenarioView,
    find_benchmark,
    find_descriptions,
    read_descriptions,
    split_folder,
)
from sampling.task import Listing, SampleTask, make_task, name_problem, prompt_problem, refuse

FPS = 24
SECONDS = 5
FRAMES = SECONDS * FPS

Mode = Literal["i2v", "v2v"]
VerifiedPrompts = Literal["op", "bpp"]


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
    tree = find_benchmark(data)
    scenarios = read_scenarios(descriptions or find_descriptions(tree))
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
    prompt_sets: Iterable[VerifiedPrompts] = ("op",),
    runs: int = 4,
) -> Listing:
    """The videos of Physics-IQ Verified, MODEL-SET-run_NN/GENERATED_NAME; groups are the run folders.

    Every run has noise of its own; the prompt sets share it, so that they can be compared pairwise.
    """
    tree = find_benchmark(data)
    groups: dict[str, tuple[SampleTask, ...]] = {}
    for prompt_set in dict.fromkeys(prompt_sets):
        scenarios = read_scenarios(find_descriptions(tree, prompt_set))
        for run in range(1, runs + 1):
            folder = f"{model_name}-{prompt_set}-run_{run:02d}"
            identity = f"physics_iq_verified/{mode}/run_{run:02d}"
            groups[folder] = tuple(run_tasks(tree, scenarios, mode, folder, identity, base_seed))
    return Listing(tuple(task for tasks in groups.values() for task in tasks), groups)


def run_tasks(
    tree: Path, scenarios: list[ScenarioView], mode: Mode, folder: str, identity: str, base_seed: int
) -> list[SampleTask]:
    """One task per scenario; ValueError names every conditioning file that is missing."""
    wanted = [(each.generated_name, each.description, conditioning_path(tree, each, mode)) for each in scenarios]
    refuse(
        (f"{name} needs {path.relative_to(tree)}" for name, _, path in wanted if not path.is_file()),
        f"conditioning files missing in {tree}",
    )
    return [
        make_task(folder, name, description, f"{identity}/{name}", base_seed, path)
        for name, description, path in wanted
    ]


def conditioning_path(tree: Path, scenario: ScenarioView, mode: Mode) -> Path:
    """The switch frame, or the conditioning clip of the first take at 24 fps."""
    number, view, rest = scenario.number, scenario.view, scenario.scenario
    if mode == "i2v":
        return tree / "switch-frames" / f"{number}_switch-frames_anyFPS_{view}_{rest}.jpg"
    name = f"{number}_conditioning-videos_{FPS}FPS_{view}_take-1_{rest}.mp4"
    return split_folder(tree, "conditioning", FPS) / name


def read_scenarios(path: Path) -> list[ScenarioView]:
    """The rows of a table of descriptions, each of which a sample can be made of."""
    views = read_descriptions(path)
    problems = ((view, name_problem(view.generated_name) or prompt_problem(view.description)) for view in views)
    refuse(
        (f"{view.generated_name}: {problem}" for view, problem in problems if problem),
        f"rows of {path} that no sample can be made of",
    )
    return views
