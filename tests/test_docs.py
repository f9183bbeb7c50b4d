"""What README, docs and docstrings point at exists: links, headings, file names, flags."""

import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from tests.loading import load_program
from tests.paths import ROOT

README = ROOT / "README.md"
README_LINES = 150  # what a newcomer reads in the first minute; the rest belongs into docs/
INDEX = ROOT / "docs" / "README.md"
PACKAGES = (
    "inference",
    "flowcache",
    "teacache",
    "multistep",
    "metrics",
    "harness",
    "sampling",
    "comfyui",
    "scripts",
    "benchmarks",
    "example",
    "tests",
)
# Where flags are looked for, the one with most of them first.
COMMANDS = (
    "scripts/generate.py",
    "scripts/check_parity.py",
    "benchmarks/speed.py",
    "benchmarks/compare/main.py",
    "benchmarks/gpu_check/main.py",
    "benchmarks/rules/reuse.py",
    "benchmarks/rules/compression.py",
    "benchmarks/wall_clock.py",
    "scripts/metric.py",
    "scripts/sample.py",
    "scripts/score/physicsiq.py",
    "scripts/score/vbench.py",
    "scripts/calibrate.py",
    "scripts/check_model.py",
    "scripts/download.py",
    "benchmarks/kills.py",
    "benchmarks/live_page.py",
    "example/nano/evaluate.py",
    "example/nano/training/dit.py",
    "example/nano/training/export.py",
    "benchmarks/long_video.py",
    "scripts/serve.py",
)
# Those that need another environment to be loaded: what they add to their parser.
ELSEWHERE = ("benchmarks/comfyui_check/main.py",)
# Programs of others: their flags and file names are not ours.
FOREIGN = re.compile(r"\b(hf|pip|uv|git|apt|brew|pytest|torchrun)\s")
MADE_BY_RUNS = ("outputs/", "downloads/", "example/nano/work/")

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# docs/sampler.md, "Time schedule" and "Noise"; or the file alone
REFERENCE = re.compile(r'docs/(\w+\.md)((?:(?:,| and) "[^"]+")*)')
OUR_FILE = re.compile(r"(?<![\w/.])[\w.-]+(?:/[\w.{},-]+)+\.(?:py|sh|yaml|json|md)\b")
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
ADDED = re.compile(r'add_argument\(\s*"(--[a-z][\w-]*)"')
CASE = re.compile(r"^ *(--[a-z][\w-]*)\)", re.MULTILINE)

Check = Callable[[str, Path], Iterator[str]]


def pages() -> list[Path]:
    return [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "example" / "nano" / "README.md"]


def sources() -> list[Path]:
    return [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


def headings(text: str) -> list[str]:
    return [found.group(1).strip() for found in re.finditer(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)]


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def broken_links(text: str, folder: Path) -> Iterator[str]:
    for target in LINK.findall(FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, section = target.partition("#")
        if not (folder / name).exists():
            yield target
        elif section:
            there = (folder / name).read_text(encoding="utf-8") if name else text
            if section not in map(anchor, headings(there)):
                yield target


def unknown_headings(text: str, folder: Path) -> Iterator[str]:
    """References to docs whose file or heading does not exist; they may go over the end of a line or comment."""
    for name, quoted in REFERENCE.findall(re.sub(r"\s*\n\s*#?\s*", " ", text)):
        page = ROOT / "docs" / name
        if not page.exists():
            yield f"docs/{name}"
            continue
        known = headings(page.read_text(encoding="utf-8"))
        yield from (f"docs/{name}, {heading!r}" for heading in re.findall(r'"([^"]+)"', quoted) if heading not in known)


def missing_files(text: str, folder: Path) -> Iterator[str]:
    """File names of ours in code spans and code blocks that do not exist; of ``a/{b,c}.py`` each is looked for."""
    for code in (*FENCE.findall(text), *re.findall(r"`([^`\n]+)`", FENCE.sub("", text))):
        for found in OUR_FILE.findall("\n".join(line for line in code.splitlines() if not FOREIGN.search(line))):
            for name in alternatives(found):
                made = name.startswith(MADE_BY_RUNS)
                if not made and not (ROOT / name).exists() and not (folder / name).exists():
                    yield name


def alternatives(pattern: str) -> list[str]:
    """``a/{b,c}.py`` to ``a/b.py`` and ``a/c.py``."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if braces is None:
        return [pattern]
    front, behind = pattern[: braces.start()], pattern[braces.end() :]
    return [name for choice in braces.group(1).split(",") for name in alternatives(front + choice + behind)]


def mentioned_flags(text: str) -> set[str]:
    lines = [line for line in text.splitlines() if not FOREIGN.search(line)]
    return {flag.replace("-", "_") for flag in FLAG.findall("\n".join(lines))}


def flags_of(command: str) -> set[str]:
    """Those that ``--help`` names; in this process, since a script's own would spend seconds on importing torch."""
    script = load_program(command)
    with redirect_stdout(StringIO()) as said, pytest.raises(SystemExit, match=r"^0$"):
        script.main(["--help"])
    return {flag.replace("-", "_") for flag in FLAG.findall(said.getvalue())}


def linked_pages(file: Path) -> set[Path]:
    """The Markdown files that ``file`` links to."""
    targets = LINK.findall(FENCE.sub("", file.read_text(encoding="utf-8")))
    return {(file.parent / target.partition("#")[0]).resolve() for target in targets if ".md" in target}


def check_all(files: list[Path], check: Check) -> None:
    found = {
        str(file.relative_to(ROOT)): wrong
        for file in files
        if file != Path(__file__) and (wrong := list(check(file.read_text(encoding="utf-8"), file.parent)))
    }
    assert not found


def test_there_is_something_to_check() -> None:
    assert README.is_file()
    assert {page.stem for page in pages()} >= {"transformer", "sampler", "conditioning", "flowcache", "configuration"}
    assert sum(len(REFERENCE.findall(file.read_text(encoding="utf-8"))) for file in sources()) > 20


def test_links_resolve() -> None:
    check_all(pages(), broken_links)


def test_references_name_existing_headings() -> None:
    check_all([*pages(), *sources()], unknown_headings)


def test_files_that_are_named_exist() -> None:
    check_all(pages(), missing_files)


def test_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= README_LINES


def test_every_page_is_in_the_index() -> None:
    assert INDEX in linked_pages(README)
    assert set(INDEX.parent.glob("*.md")) - linked_pages(INDEX) == {INDEX}


@pytest.mark.slow
def test_flags_that_are_mentioned_exist() -> None:
    unknown = set().union(*(mentioned_flags(page.read_text(encoding="utf-8")) for page in pages()))
    assert len(unknown) > 5
    # A shell script's own stand in a case: what else it is given it hands on.
    unknown -= {
        flag.replace("-", "_") for file in (ROOT / "scripts").glob("*.sh") for flag in CASE.findall(file.read_text())
    }
    elsewhere = "".join((ROOT / name).read_text(encoding="utf-8") for name in ELSEWHERE)
    unknown -= {flag.replace("-", "_") for flag in ADDED.findall(elsewhere)}
    for command in COMMANDS:
        if unknown:
            unknown -= flags_of(command)
    assert not unknown


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (broken_links, "see [this](docs/no_such_file.md)"),
        (broken_links, "see [this](docs/sampler.md#no-such-heading)"),
        (broken_links, "see [below](#no-such-heading)\n# A heading"),
        (unknown_headings, '"""A module (docs/no_such_file.md)."""'),
        (unknown_headings, '"""A module (docs/sampler.md, "No such heading")."""'),
        (unknown_headings, '# A comment (docs/sampler.md,\n    # "Noise" and "No such\n    # heading").'),
        (missing_files, "call `python scripts/no_such_script.py --help`"),
        (missing_files, "```bash\nbash scripts/no_such_script.sh\n```"),
        (missing_files, "`scripts/{generate,no_such_script}.py`"),
    ],
)
def test_what_does_not_exist_is_seen(check: Check, text: str) -> None:
    assert len(list(check(text, ROOT))) == 1


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (
            broken_links,
            "[a](https://example.org/x.md), [b](docs/sampler.md), [c](docs/sampler.md#time-schedule), [d](#e)\n# E",
        ),
        (unknown_headings, '# As docs/sampler.md, "Time schedule" and "Noise"\n# has it; see "Another title".'),
        (missing_files, "`configs/model/*.json`, `outputs/video.json`, `NAME.json`, and scripts/in_prose.py"),
        (missing_files, "```bash\nhf download x --local-dir ckpt/vae/config.json\n```"),
    ],
)
def test_what_exists_or_is_not_ours_passes(check: Check, text: str) -> None:
    assert not list(check(text, ROOT))


def test_flags_in_text() -> None:
    text = "`--num-frames 8`, [--seed N], a -- dash, page--break\nhf download --local-dir x\n"
    assert mentioned_flags(text) == {"__num_frames", "__seed"}
