"""Physics-IQ's samples: names built here, from the stated rules, on fake data of the real one's size."""

import csv
import itertools
from pathlib import Path

import pytest

from sampling.physics_iq import list_original, list_verified

VIEWS = ("perspective-left", "perspective-center", "perspective-right")
CATEGORIES = {"Solid Mechanics": 114, "Fluid Dynamics": 45, "Optics": 24, "Thermodynamics": 9, "Magnetism": 6}
HEADER = ("scenario", "description", "category", "generated_video_name")


def sample_name(number: int) -> str:
    """Name of the generated video of id ``number``: three views a scenario."""
    return f"{number:04d}_{VIEWS[(number - 1) % 3]}_trimmed-scenario-{(number - 1) // 3}.mp4"


def rows(take_in_name: bool = True, suffix: str = "") -> list[tuple[str, str, str, str]]:
    categories = list(itertools.chain.from_iterable([name] * count for name, count in CATEGORIES.items()))
    found = []
    for take, number in itertools.product((1, 2), range(1, 199)):
        name = sample_name(number)
        scenario = name if not take_in_name else name.replace("_trimmed", f"_take-{take}_trimmed")
        found.append((scenario, f"what happens in {number}{suffix}", categories[number - 1], name))
    return found


def write_csv(path: Path, lines: list[tuple[str, ...]], header: tuple[str, ...] = HEADER) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *lines])


def clip_name(number: int) -> str:
    start, view, rest = sample_name(number).split("_", 2)
    return f"{start}_conditioning-videos_24FPS_{view}_take-1_{rest}"


def frame_name(number: int) -> str:
    start, view, rest = sample_name(number).split("_", 2)
    return f"{start}_switch-frames_anyFPS_{view}_{rest.removesuffix('.mp4')}.jpg"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The official tree with empty files."""
    tree = tmp_path / "physics-IQ-benchmark"
    for number in range(1, 199):
        for place in (f"split-videos/conditioning/24FPS/{clip_name(number)}", f"switch-frames/{frame_name(number)}"):
            (tree / place).parent.mkdir(parents=True, exist_ok=True)
            (tree / place).touch()
    write_csv(tmp_path / "descriptions" / "descriptions.csv", rows())
    return tmp_path


@pytest.mark.parametrize("take_in_name", [True, False])
def test_198_videos_from_396_rows(data: Path, take_in_name: bool) -> None:
    write_csv(data / "descriptions" / "descriptions.csv", rows(take_in_name))
    tasks = list_original(data, 1, "model-a", "v2v").tasks
    assert [str(task.path) for task in tasks] == [f"model-a/{sample_name(number)}" for number in range(1, 199)]
    assert [task.prompt for task in tasks] == [f"what happens in {number}" for number in range(1, 199)]
    assert len({task.seed for task in tasks}) == 198


def test_what_a_video_starts_from(data: Path) -> None:
    clips = data / "physics-IQ-benchmark" / "split-videos" / "conditioning" / "24FPS"
    frames = data / "physics-IQ-benchmark" / "switch-frames"
    clip_tasks, frame_tasks = (list_original(data, 1, "m", mode).tasks for mode in ("v2v", "i2v"))
    assert [task.conditioning for task in clip_tasks] == [clips / clip_name(number) for number in range(1, 199)]
    assert [task.conditioning for task in frame_tasks] == [frames / frame_name(number) for number in range(1, 199)]
    assert clip_name(2) == "0002_conditioning-videos_24FPS_perspective-center_take-1_trimmed-scenario-0.mp4"
    assert frame_name(6) == "0006_switch-frames_anyFPS_perspective-right_trimmed-scenario-1.jpg"


def test_counts_by_category(data: Path) -> None:
    groups = list_original(data / "physics-IQ-benchmark", 1, "m", "i2v").groups
    assert {name: len(tasks) for name, tasks in groups.items()} == CATEGORIES


def test_verified_layout(data: Path) -> None:
    tree = data / "physics-IQ-benchmark"
    write_csv(tree / "descriptions" / "descriptions_original.csv", rows())
    write_csv(tree / "descriptions" / "best_practice" / "descriptions_base.csv", rows(suffix=", told better"))
    listing = list_verified(data, 1, "magi", "i2v", ["op", "bpp"])
    folders = [f"magi-{prompts}-run_{run:02d}" for prompts in ("op", "bpp") for run in (1, 2, 3, 4)]
    assert list(listing.groups) == folders
    assert [str(task.path) for task in listing.tasks] == [
        f"{folder}/{sample_name(number)}" for folder in folders for number in range(1, 199)
    ]
    assert listing.groups["magi-bpp-run_02"][4].prompt == "what happens in 5, told better"
    seeds = {folder: [task.seed for task in tasks] for folder, tasks in listing.groups.items()}
    assert len({seed for run in folders[:4] for seed in seeds[run]}) == 4 * 198  # a run repeats no noise
    assert seeds["magi-op-run_03"] == seeds["magi-bpp-run_03"]  # paired over the prompt sets
    assert len(list_verified(data, 1, "magi", "i2v", ["op"], runs=2).tasks) == 2 * 198


def test_the_method_does_not_change_the_seed(data: Path) -> None:
    first, second = (list_original(data, 1, name, "v2v").tasks for name in ("magi-v2v", "flowcache-v2v"))
    assert [task.seed for task in first] == [task.seed for task in second]
    assert [task.seed for task in first] != [task.seed for task in list_original(data, 2, "m", "v2v").tasks]


def test_conditioning_clips_in_the_folder_that_the_description_names(data: Path) -> None:
    split = data / "physics-IQ-benchmark" / "split-videos"
    (split / "conditioning").rename(split / "conditioning-videos")
    tasks = list_original(data, 1, "m", "v2v").tasks
    clips = split / "conditioning-videos" / "24FPS"
    assert [task.conditioning for task in tasks] == [clips / clip_name(number) for number in range(1, 199)]


def test_a_missing_conditioning_file_is_named(data: Path) -> None:
    (data / "physics-IQ-benchmark" / "switch-frames" / frame_name(17)).unlink()
    assert len(list_original(data, 1, "m", "v2v").tasks) == 198
    with pytest.raises(ValueError, match=rf"0017_.*needs switch-frames/{frame_name(17)}$"):
        list_original(data, 1, "m", "i2v")


def test_rows_that_are_not_as_they_should_be(data: Path) -> None:
    csv_file = data / "descriptions" / "descriptions.csv"
    lines = rows()
    write_csv(csv_file, [*lines[:4], *lines[5:]])
    with pytest.raises(ValueError, match=r"0006_.* where number 0005 follows; they run from 0001"):
        list_original(data, 1, "m", "v2v")
    write_csv(csv_file, [(*lines[0][:3], "ball.mp4"), *lines[1:]])
    with pytest.raises(ValueError, match=r"line 2: 'ball.mp4' is not of the form NNNN_perspective"):
        list_original(data, 1, "m", "v2v")
    write_csv(csv_file, [(lines[0][0], " ", *lines[0][2:]), *lines[1:]])
    with pytest.raises(ValueError, match=r"the description of 0001_.* is empty"):
        list_original(data, 1, "m", "v2v")
    write_csv(csv_file, [row[:3] for row in lines], HEADER[:3])
    with pytest.raises(ValueError, match="has no column generated_video_name"):
        list_original(data, 1, "m", "v2v")


def test_data_that_is_not_there(data: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no Physics-IQ data in"):
        list_original(tmp_path / "descriptions", 1, "m", "v2v")
    with pytest.raises(FileNotFoundError, match=r"no descriptions \(bpp\).*best_practice/descriptions_base.csv"):
        list_verified(data, 1, "m", "v2v", ["bpp"])
