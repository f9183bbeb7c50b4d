"""VBench's samples: names built here, from the stated rules, on a fake folder of the real one's size."""

import json
from pathlib import Path

import pytest

from inference.noise import sample_seed
from sampling.config import VBenchRun, read_run
from sampling.vbench import DIMENSIONS, list_vbench, protocol
from tests.paths import ROOT

# Lines of the real prompt files.
LINES = {
    "subject_consistency": 72,
    "scene": 86,
    "temporal_flickering": 75,
    "overall_consistency": 93,
    "object_class": 79,
    "multiple_objects": 82,
    "human_action": 100,
    "color": 85,
    "spatial_relationship": 84,
    "temporal_style": 100,
    "appearance_style": 90,
}
ALL = 946
# Two prompts that two files have in common, as in the real set: 944 different ones.
REPEATED = {("color", 1): "object_class, prompt 5", ("temporal_style", 9): "scene, prompt 7"}


def fake_prompt(stem: str, number: int) -> str:
    return REPEATED.get((stem, number), f"{stem}, prompt {number}")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A checkout of VBench as far as its prompts go."""
    folder = tmp_path / "VBench" / "prompts" / "prompts_per_dimension"
    folder.mkdir(parents=True)
    for stem, lines in LINES.items():
        text = "".join(f"{fake_prompt(stem, number)}\n" for number in range(lines))
        (folder / f"{stem}.txt").write_text(text, encoding="utf-8")
    everything = [fake_prompt(stem, number) for stem, lines in LINES.items() for number in range(lines)]
    (tmp_path / "VBench" / "prompts" / "all_dimension.txt").write_text("\n".join(everything), encoding="utf-8")
    return tmp_path / "VBench"


def small(tmp_path: Path, *lines: str, stem: str = "scene") -> Path:
    tmp_path.joinpath(f"{stem}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def names(data: Path, **settings: object) -> list[str]:
    return [str(task.path) for task in list_vbench(data, 1, dimensions=["scene"], **settings).tasks]


def test_first_index_of_every_prompt(data: Path) -> None:
    expected = {f"{stem}/{fake_prompt(stem, n)}-0.mp4" for stem, lines in LINES.items() for n in range(lines)}
    listing = list_vbench(data, 1, samples_per_prompt=1, flickering_samples=1)
    assert len(expected) == ALL and len({Path(name).name for name in expected}) == 944
    assert len(listing.tasks) == ALL and {str(task.path) for task in listing.tasks} == expected


def test_every_index(data: Path) -> None:
    expected = set()
    for stem, lines in LINES.items():
        for index in range(25 if stem == "temporal_flickering" else 5):
            expected |= {f"{stem}/{fake_prompt(stem, n)}-{index}.mp4" for n in range(lines)}
    tasks = list_vbench(data, 1).tasks
    assert len(tasks) == 6230 and {str(task.path) for task in tasks} == expected
    assert len({task.identity for task in tasks}) == len({task.seed for task in tasks}) == 6230


def test_sixteen_dimensions_share_eleven_files(data: Path) -> None:
    listing = list_vbench(data, 1)
    counts = {name: len(tasks) for name, tasks in listing.groups.items()}
    assert len(counts) == len(DIMENSIONS) == 16
    assert counts == {
        **{stem: lines * 5 for stem, lines in LINES.items()},
        "temporal_flickering": 75 * 25,
        "background_consistency": 86 * 5,
        "aesthetic_quality": 93 * 5,
        "imaging_quality": 93 * 5,
        "motion_smoothness": 72 * 5,
        "dynamic_degree": 72 * 5,
    }
    assert listing.groups["dynamic_degree"] == listing.groups["subject_consistency"]


def test_some_dimensions(data: Path) -> None:
    listing = list_vbench(data, 1, dimensions=["dynamic_degree", "motion_smoothness", "color"])
    assert {task.path.parts[0] for task in listing.tasks} == {"subject_consistency", "color"}
    assert len(listing.tasks) == (72 + 85) * 5
    with pytest.raises(ValueError, match=r"unknown VBench dimensions.*\n  colour"):
        list_vbench(data, 1, dimensions=["colour"])


def test_a_seed_depends_on_base_seed_and_sample_alone(data: Path) -> None:
    whole = {task.path: task for task in list_vbench(data, 7).tasks}
    part = list_vbench(data, 7, dimensions=["color"], samples_per_prompt=2).tasks
    assert all(whole[task.path] == task for task in part)
    assert all(task.seed == sample_seed(7, task.identity) for task in part)
    other = list_vbench(data, 8, dimensions=["color"], samples_per_prompt=2).tasks
    assert not {task.seed for task in part} & {task.seed for task in other}
    # The same prompt in another folder is another video.
    assert whole[Path("color/object_class, prompt 5-0.mp4")].seed != (
        whole[Path("object_class/object_class, prompt 5-0.mp4")].seed
    )


def test_augmented_prompts_from_a_folder(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "longer"
    folder.mkdir()
    text = "".join(f"a longer text, number {n}\n" for n in range(86))
    (folder / "scene_longer.txt").write_text(text, encoding="utf-8")
    tasks = list_vbench(data, 1, dimensions=["scene"], augmented=folder).tasks
    assert {(str(task.path), task.prompt) for task in tasks} == {
        (f"scene/scene, prompt {n}-{index}.mp4", f"a longer text, number {n}") for n in range(86) for index in range(5)
    }
    plain = list_vbench(data, 1, dimensions=["scene"]).tasks
    assert [task.seed for task in tasks] == [task.seed for task in plain]
    (folder / "scene.txt").write_text("one line\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"scene\.txt has 1 lines, but .*scene\.txt has 86"):
        list_vbench(data, 1, dimensions=["scene"], augmented=folder)


def test_a_prompt_of_two_files_has_two_augmentations(data: Path, tmp_path: Path) -> None:
    lines = (data / "prompts" / "all_dimension.txt").read_text(encoding="utf-8").splitlines()
    stems = [stem for stem, count in LINES.items() for _ in range(count)]
    longer = tmp_path / "all_longer.txt"
    longer.write_text("".join(f"{stem}: {line}\n" for stem, line in zip(stems, lines, strict=True)), encoding="utf-8")
    tasks = list_vbench(data, 1, samples_per_prompt=1, flickering_samples=1, augmented=longer).tasks
    assert len(tasks) == ALL
    assert {str(task.path): task.prompt for task in tasks} == {
        str(task.path): f"{task.path.parent}: {task.path.name.removesuffix('-0.mp4')}" for task in tasks
    }


@pytest.mark.parametrize(
    "given", ["prompts", "prompts/augmented_prompts", "prompts/augmented_prompts/gpt_enhanced_prompts"]
)
def test_augmented_prompts_of_a_checkout_are_found_below_the_folder(data: Path, given: str) -> None:
    folder = data / "prompts" / "augmented_prompts" / "gpt_enhanced_prompts" / "prompts_per_dimension_longer"
    folder.mkdir(parents=True)
    text = "".join(f"a longer text, number {n}\n" for n in range(86))
    (folder / "scene_longer.txt").write_text(text, encoding="utf-8")
    tasks = list_vbench(data, 1, dimensions=["scene"], samples_per_prompt=1, augmented=data / given).tasks
    assert [task.prompt for task in tasks] == text.splitlines()
    with pytest.raises(FileNotFoundError, match=r"neither color\.txt nor color_longer\.txt, nor does prompts_per_dim"):
        list_vbench(data, 1, dimensions=["color"], augmented=data / given)


def test_augmented_prompts_from_a_file(data: Path, tmp_path: Path) -> None:
    lines = (data / "prompts" / "all_dimension.txt").read_text(encoding="utf-8").splitlines()
    table = {line: line.upper() for line in lines}
    as_text, as_json = tmp_path / "all_longer.txt", tmp_path / "all.json"
    as_text.write_text("\n".join(map(str.upper, lines)), encoding="utf-8")
    as_json.write_text(json.dumps(table), encoding="utf-8")
    for file in (as_text, as_json):
        tasks = list_vbench(data, 1, augmented=file).tasks
        assert all(task.prompt == task.path.name.rpartition("-")[0].upper() for task in tasks)
    del table["scene, prompt 3"]
    as_json.write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(ValueError, match=r"no augmented prompt for these of scene.txt:\n  'scene, prompt 3'$"):
        list_vbench(data, 1, augmented=as_json)


def test_odd_characters_stay_as_they_are(tmp_path: Path) -> None:
    prompts = [
        "...",
        ".hidden",
        "-rf",
        'a "quoted" text?',
        "50% * 2: <b>",
        "naïve café 猫",
        "a\\b",
        "tab\there",
        "a\u2028b",
    ]
    assert names(small(tmp_path, *prompts), samples_per_prompt=1) == [f"scene/{text}-0.mp4" for text in prompts]


def test_white_space_around_lines_and_empty_lines_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "scene.txt").write_bytes("\ufeffone \r\n\r\n  two\r\n".encode())
    assert names(tmp_path, samples_per_prompt=1) == ["scene/one-0.mp4", "scene/two-0.mp4"]


def test_a_repeated_line_is_sampled_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert names(small(tmp_path, "one", "two", "one "), samples_per_prompt=1) == ["scene/one-0.mp4", "scene/two-0.mp4"]
    assert "scene.txt, line 3 repeats an earlier one: 'one' is sampled once" in caplog.text


def test_prompts_that_are_no_file_name_are_refused_all_at_once(tmp_path: Path) -> None:
    longest = 254 - len("-0.mp4")
    data = small(tmp_path, "fine", "either/or", "a\0b", "x" * longest, "y" * (longest + 1), "é" * 130)
    with pytest.raises(ValueError) as refused:
        names(data)
    lines = str(refused.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == [f"scene.txt, line {number}" for number in (2, 3, 5, 6)]
    assert "a slash cannot" in lines[0] and "a zero character" in lines[1]
    assert "255 bytes; 254 are possible" in lines[2] and "266 bytes" in lines[3]
    # Indices of two digits need one byte more.
    with pytest.raises(ValueError, match="255 bytes"):
        names(small(tmp_path, "x" * longest), samples_per_prompt=11)


def test_what_is_no_prompt_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no VBench prompts in"):
        list_vbench(tmp_path, 1)
    small(tmp_path, "one")
    with pytest.raises(FileNotFoundError, match=r"color\.txt does not exist"):
        list_vbench(tmp_path, 1, dimensions=["scene", "color"])
    (tmp_path / "scene.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        names(tmp_path)
    (tmp_path / "scene.txt").write_text("\n\n", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no prompts"):
        names(tmp_path)


def test_the_protocol_of_papers_on_caching(data: Path) -> None:
    run = read_run(ROOT / "configs" / "sample" / "vbench_paper.yaml")
    assert isinstance(run, VBenchRun)
    listing = list_vbench(data, 1, samples_per_prompt=run.samples_per_prompt, flickering_samples=run.flickering_samples)
    assert len(listing.tasks) == ALL and all(task.path.name.endswith("-0.mp4") for task in listing.tasks)
    asked = "(VBench asks for indices 0 to 4, all files, static ones of 25)"
    said = protocol(run.dimensions, run.samples_per_prompt, run.flickering_samples, static_filter=False)
    assert said == (
        f"index 0 of each prompt; 11 of 11 prompt files; temporal flickering not filtered, 1 per prompt {asked}"
    )
    three = ["overall_consistency", "aesthetic_quality", "subject_consistency", "motion_smoothness", "scene"]
    assert protocol(three, 1, 1, static_filter=False) == f"index 0 of each prompt; 3 of 11 prompt files {asked}"
    assert protocol(DIMENSIONS, 5, 25, static_filter=True) == (
        "indices 0 to 4 of each prompt; 11 of 11 prompt files; temporal flickering picked as static from 25 per prompt"
    )
    assert asked in protocol(DIMENSIONS, 5, 25, static_filter=False)
