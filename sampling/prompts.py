"""Videos of one's own prompts (docs/sampling.md, "Your own prompts"): a line each, or YAML with seeds and inputs.

A video is bit by bit that of ``scripts/generate.py`` with the same prompt, seed and input.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inference.files import read_yaml
from inference.session.times import TimedPrompt, timed_prompt
from sampling.task import CLIPS, Listing, SampleTask, make_task, name_problem, prompt_problem, read_lines, refuse

FOLDER = "videos"
# The noise of scripts/generate.py is that of its seed and this identity.
IDENTITY = "0"
# Of a prompt in a file's name, in bytes.
LONGEST_WORDS = 80
KEYS = ("prompt", "name", "seed", "image", "clip", "prompts")


@dataclass(frozen=True)
class Entry:
    """What one entry of the file asks for. ``place``: where it stands, for messages. ``later``: prompts that take over.
    ``name``: of the video, without ending; by default made of prompt and seed.
    """

    place: str
    prompt: str
    name: str | None = None
    seed: int | None = None
    image: Path | None = None
    clip: Path | None = None
    later: tuple[TimedPrompt, ...] = field(default=())


def list_prompts(path: Path, base_seed: int, samples_per_prompt: int = 1) -> Listing:
    """The videos of a file of prompts, videos/NAME.mp4; groups are what they begin with.

    Args:
        path: lines, or YAML (.yaml, .yml): a list of texts and of mappings with some of ``KEYS``.
        base_seed: for entries without a seed; of several videos of a prompt each has the next seed.
        samples_per_prompt: how many videos of each entry.

    Raises:
        FileNotFoundError, ValueError: with every entry that no video can be made of.
    """
    problems: list[str] = []
    entries = list((_of_yaml if path.suffix.lower() in (".yaml", ".yml") else _of_lines)(path, problems))
    made: dict[str, tuple[str, SampleTask]] = {}
    for entry in entries:
        for index in range(samples_per_prompt):
            seed = (base_seed if entry.seed is None else entry.seed) + index
            suffix = "" if samples_per_prompt == 1 else f"-{index}"
            name = f"{_words(entry.prompt)}-{seed}" if entry.name is None else f"{entry.name}{suffix}"
            if wrong := name_problem(f"{name}.mp4") or ("a name cannot begin with a dot" if name[0] == "." else None):
                problems.append(f"{entry.place}: {wrong}: {name[:80]!r}")
            elif name in made:
                problems.append(
                    f"{entry.place}: the video {name!r} is that of {made[name][0]} already; give one of them another "
                    "name, or another seed"
                )
            else:
                given = entry.image or entry.clip
                task = make_task(FOLDER, f"{name}.mp4", entry.prompt, IDENTITY, seed, given, entry.later, seed)
                made[name] = (entry.place, task)
    refuse(problems, f"entries of {path} that no video can be made of")
    if not made:
        raise ValueError(f"{path} holds no prompts")
    tasks = tuple(task for _, task in made.values())
    groups = {"from text": [], "from an image": [], "from a clip": []}
    for task in tasks:
        groups["from text" if task.conditioning is None else "from a clip" if task.is_clip else "from an image"].append(
            task
        )
    return Listing(tasks, {name: tuple(group) for name, group in groups.items() if group})


def _words(prompt: str) -> str:
    """A prompt as the beginning of a file's name."""
    words = re.sub(r"\W+", "_", prompt).strip("_").encode()[:LONGEST_WORDS].decode(errors="ignore")
    return words.rstrip("_") or "video"


def _of_lines(path: Path, problems: list[str]) -> Iterator[Entry]:
    for number, text in read_lines(path):
        if not text or text.startswith("#"):
            continue
        if wrong := prompt_problem(text):
            problems.append(f"line {number}: {wrong}: {text[:80]!r}")
        else:
            yield Entry(f"line {number}", text)


def _of_yaml(path: Path, problems: list[str]) -> Iterator[Entry]:
    try:
        entries = read_yaml(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"{path} does not exist, or is a folder") from None
    if not isinstance(entries, list):
        raise ValueError(f'{path} is no list of prompts such as "- a big red ball" or "- prompt: a big red ball"')
    for number, values in enumerate(entries, start=1):
        place = f"entry {number}"
        try:
            yield _entry(place, {"prompt": values} if isinstance(values, str) else values, path.parent)
        except ValueError as error:
            problems.append(f"{place}: {error}")


def _entry(place: str, values: Any, folder: Path) -> Entry:
    """One entry of YAML; files are looked for from the folder of its file. ValueError where it is none."""
    if not isinstance(values, dict):
        raise ValueError(f"a prompt or a mapping is needed, not {type(values).__name__}")
    if unknown := [str(name) for name in values if name not in KEYS]:
        raise ValueError(f"unknown: {', '.join(unknown)} (known: {', '.join(KEYS)})")
    prompt, name, seed = values.get("prompt"), values.get("name"), values.get("seed")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("it has no prompt")
    if wrong := prompt_problem(prompt):
        raise ValueError(f"{wrong}: {prompt[:80]!r}")
    if name is not None and not (isinstance(name, str) and name):
        raise ValueError(f"name must be a text, got {name!r}")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32):
        raise ValueError(f"seed must be a whole number from 0 to {2**32 - 1}, got {seed!r}")
    if "image" in values and "clip" in values:
        raise ValueError("image and clip exclude each other")
    return Entry(
        place,
        prompt.strip(),
        name,
        seed,
        _file(values, "image", folder),
        _file(values, "clip", folder),
        tuple(_later(values.get("prompts", []))),
    )


def _file(values: dict[str, Any], key: str, folder: Path) -> Path | None:
    if key not in values:
        return None
    if not isinstance(values[key], str):
        raise ValueError(f"{key} must be a file's path, got {values[key]!r}")
    path = (folder / Path(values[key]).expanduser()).resolve()
    if not path.is_file():
        raise ValueError(f"{key} {path} does not exist")
    if (path.suffix.lower() in CLIPS) != (key == "clip"):
        raise ValueError(f"{key} {path.name}: clips end with {', '.join(sorted(CLIPS))}, and nothing else is one")
    return path


def _later(entries: Any) -> Iterator[TimedPrompt]:
    if not isinstance(entries, list):
        raise ValueError('prompts must be a list of "at" and "prompt"')
    for entry in entries:
        if not isinstance(entry, dict) or entry.keys() != {"at", "prompt"}:
            raise ValueError('of prompts, each needs "at" and "prompt", and nothing else')
        yield timed_prompt(entry["at"], entry["prompt"])
