"""The samples that VBench wants: 16 dimensions over 11 prompt files (docs/sampling.md, "VBench").

The evaluator looks for ``PROMPT-INDEX.mp4`` with the prompt verbatim and only warns about files that it misses.
"""

import itertools
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from inference.files import read_json
from sampling.task import Listing, SampleTask, make_task, name_problem, prompt_problem, read_lines, refuse

logger = logging.getLogger(__name__)

PROMPT_FILES = (
    "subject_consistency",
    "scene",
    "temporal_flickering",
    "overall_consistency",
    "object_class",
    "multiple_objects",
    "human_action",
    "color",
    "spatial_relationship",
    "temporal_style",
    "appearance_style",
)
# Dimensions without prompts of their own, and whose videos they are computed from.
SHARED = {
    "background_consistency": "scene",
    "aesthetic_quality": "overall_consistency",
    "imaging_quality": "overall_consistency",
    "motion_smoothness": "subject_consistency",
    "dynamic_degree": "subject_consistency",
}
# Prompt file, which is also the folder of the videos, of every dimension.
DIMENSIONS = {name: name for name in PROMPT_FILES} | SHARED
# A filter picks the static ones of these, so more are made.
MANY_SAMPLES = "temporal_flickering"
# Samples per prompt that VBench asks for, and those of temporal_flickering.
ASKED, ASKED_FLICKERING = 5, 25
# Where VBench's augmented prompts have a file per prompt file: the folder itself, or one of these in it.
AUGMENTED_BELOW = (
    ".",
    "prompts_per_dimension_longer",
    "gpt_enhanced_prompts/prompts_per_dimension_longer",
    "augmented_prompts/gpt_enhanced_prompts/prompts_per_dimension_longer",
)


def list_vbench(
    data: Path,
    base_seed: int,
    *,
    dimensions: Iterable[str] = tuple(DIMENSIONS),
    samples_per_prompt: int = ASKED,
    flickering_samples: int = ASKED_FLICKERING,
    augmented: Path | None = None,
) -> Listing:
    """Every video that the dimensions need, FOLDER/PROMPT-INDEX.mp4; groups are the dimensions.

    Args:
        data: ``prompts_per_dimension`` or a folder that holds it (VBench's checkout or its ``prompts``).
        base_seed: what all samples' seeds are derived from.
        dimensions: some of the 16; files that several share are listed once.
        samples_per_prompt, flickering_samples: indices per prompt, and those of temporal_flickering.
        augmented: longer prompts for the model, the file keeping the original's name: a folder with a file per prompt
            file (in it or in a folder of `AUGMENTED_BELOW`), a text file in step with ``all_dimension.txt``, or a JSON
            object from original to augmented.

    Raises:
        FileNotFoundError, ValueError: with every prompt that cannot be made into a file name or given to the model.
    """
    wanted = list(dict.fromkeys(dimensions))
    unknown = [name for name in wanted if name not in DIMENSIONS]
    refuse(unknown, f"unknown VBench dimensions (known are {', '.join(sorted(DIMENSIONS))})")
    folder = find_prompt_folder(data)
    needed = {DIMENSIONS[name] for name in wanted}
    problems: list[str] = []
    of_file: dict[str, tuple[SampleTask, ...]] = {}
    for stem in (name for name in PROMPT_FILES if name in needed):
        count = flickering_samples if stem == MANY_SAMPLES else samples_per_prompt
        prompts = read_prompts(folder, stem, augmented, problems, digits=len(str(count - 1)))
        of_file[stem] = tuple(
            make_task(stem, f"{text}-{index}.mp4", sent, f"vbench/{stem}/{text}/{index}", base_seed)
            for text, sent in prompts.items()
            for index in range(count)
        )
    refuse(problems, f"prompts in {folder} that no sample can be made of; correct or remove these lines")
    tasks = tuple(itertools.chain.from_iterable(of_file.values()))
    return Listing(tasks, {name: of_file[DIMENSIONS[name]] for name in wanted})


def protocol(dimensions: Iterable[str], samples_per_prompt: int, flickering_samples: int, static_filter: bool) -> str:
    """In one line how videos were made and picked, beside what VBench asks for: to be printed with every result."""
    wanted = list(dimensions)
    files = len({DIMENSIONS[name] for name in wanted})
    indices = "index 0" if samples_per_prompt == 1 else f"indices 0 to {samples_per_prompt - 1}"
    parts = [f"{indices} of each prompt", f"{files} of {len(PROMPT_FILES)} prompt files"]
    if MANY_SAMPLES in wanted:
        filtered = "picked as static from" if static_filter else "not filtered,"
        parts.append(f"temporal flickering {filtered} {flickering_samples} per prompt")
    full = samples_per_prompt == ASKED and files == len(PROMPT_FILES) and static_filter
    full = full and flickering_samples == ASKED_FLICKERING
    asked = f"VBench asks for indices 0 to {ASKED - 1}, all files, static ones of {ASKED_FLICKERING}"
    return "; ".join(parts) + ("" if full else f" ({asked})")


def find_prompt_folder(data: Path) -> Path:
    """The folder of the 11 prompt files in or below ``data``."""
    candidates = [data / "prompts" / "prompts_per_dimension", data / "prompts_per_dimension", data]
    for folder in candidates:
        if any((folder / f"{stem}.txt").is_file() for stem in PROMPT_FILES):
            return folder
    raise FileNotFoundError(
        f"no VBench prompts in {data}: it should hold prompts_per_dimension/ with {PROMPT_FILES[0]}.txt and the others"
    )


def read_prompts(folder: Path, stem: str, augmented: Path | None, problems: list[str], digits: int) -> dict[str, str]:
    """Every prompt of one file, in order, with what the model is given for it; what is wrong with a line is added to
    ``problems``.
    """
    path = folder / f"{stem}.txt"
    lines = list(read_lines(path))
    sent = augmented_lines(folder, stem, augmented, [text for _, text in lines])
    found: dict[str, str] = {}
    for (number, text), given in zip(lines, sent, strict=True):
        if not text:
            continue
        if text in found:
            logger.warning("%s, line %d repeats an earlier one: %r is sampled once", path, number, text)
            continue
        wrong = name_problem(f"{text}-{'0' * digits}.mp4") or prompt_problem(text) or prompt_problem(given)
        if not given:
            wrong = "its augmented prompt is empty"
        if wrong:
            problems.append(f"{path.name}, line {number}: {wrong}: {text[:80]!r}")
        found[text] = given
    if not found:
        raise ValueError(f"{path} holds no prompts")
    return found


def augmented_lines(folder: Path, stem: str, augmented: Path | None, texts: list[str]) -> list[str]:
    """What the model is given for each of the lines ``texts`` of a prompt file."""
    if augmented is None:
        return texts
    if augmented.is_dir():
        names = (f"{stem}.txt", f"{stem}_longer.txt")
        paths = [augmented / below / name for below in AUGMENTED_BELOW for name in names]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise FileNotFoundError(
                f"{augmented} holds neither {names[0]} nor {names[1]}, nor does "
                f"{', '.join(AUGMENTED_BELOW[1:])} in it: no augmented prompts"
            )
        return in_step(path, folder / f"{stem}.txt", texts)
    if not augmented.is_file():
        raise FileNotFoundError(f"augmented prompts {augmented} do not exist")
    table = read_table(augmented) if augmented.suffix == ".json" else read_parallel(augmented, folder, texts)
    refuse(
        (repr(text) for text in texts if text and text not in table),
        f"{augmented} has no augmented prompt for these of {stem}.txt",
    )
    return [table.get(text, "") for text in texts]


def in_step(path: Path, original: Path, texts: list[str]) -> list[str]:
    """The lines of ``path``, which must be as many as the original's."""
    lines = [text for _, text in read_lines(path)]
    if len(lines) != len(texts):
        raise ValueError(f"{path} has {len(lines)} lines, but {original} has {len(texts)}: they must go in step")
    return lines


def read_table(path: Path) -> dict[str, str]:
    """A JSON object from original to augmented prompts."""
    try:
        table = read_json(path)
    except ValueError as error:
        raise ValueError(f"augmented prompts {path} are no JSON: {error}") from error
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise ValueError(f"augmented prompts {path} must be a JSON object from original to augmented prompt")
    return {key.strip(): value.strip() for key, value in table.items()}


def read_parallel(path: Path, folder: Path, texts: Sequence[str]) -> dict[str, str]:
    """What a text file has for ``texts``; its lines go in step with ``all_dimension.txt``, beside the prompt folder.

    That file is one prompt file after the other, and a prompt that two of them have comes twice, augmented differently:
    the line nearest to the other lines of ``texts`` counts.
    """
    original = folder.parent / "all_dimension.txt"
    if not original.is_file():
        raise FileNotFoundError(
            f"{path} is read in step with {original}, which does not exist; give a folder or a JSON"
        )
    everything = [text for _, text in read_lines(original)]
    sent = in_step(path, original, everything)
    lines: dict[str, list[int]] = {}
    for number, text in enumerate(everything):
        lines.setdefault(text, []).append(number)
    found = [text for text in texts if text in lines]
    once = [lines[text][0] for text in found if len(lines[text]) == 1]
    middle = median(once) if once else 0
    return {text: sent[min(lines[text], key=lambda number: abs(number - middle))] for text in found}
