"""House rules that no linter knows: sizes, what library code must not do, what stands beside what in a folder."""

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePath

import pytest

from tests.paths import ROOT

LIBRARIES = ("inference", "flowcache", "teacache", "multistep", "metrics")
PACKAGES = (*LIBRARIES, "harness", "sampling", "serving", "comfyui", "scripts", "benchmarks", "example", "tests")

Rule = Callable[[str], Iterator[str]]

MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60
# Of one kind, .py or .sh, side by side.
MOST_FILES_OF_A_FOLDER = 13
# Files of a folder, by its path and their first word, that share that word and are no folder of their own.
RELATED = {
    ("inference", "config"): "config_errors.py only turns what goes wrong in config.py into one line",
    ("scripts", "check"): "a verb: two programs that users call by these names check different things",
    ("example/nano", "make"): "a verb: each makes something else",
}

# Split, so that this file does not contain them.
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX")) + r")\b")
FORBIDDEN_CALLS = {
    "print": "log with the standard library",
    "hasattr": "make the state explicit",
    "breakpoint": "remove the debugger",
    "set_trace": "remove the debugger",
    "__import__": "import by a statement, which the import rules can see",
    "import_module": "import by a statement, which the import rules can see",
    "getenv": "make it a configuration field",
}


def sources(packages: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for package in packages:
        for file in sorted((ROOT / package).rglob("*.py")):
            yield str(file.relative_to(ROOT)), file.read_text(encoding="utf-8")


def oversized(source: str) -> Iterator[str]:
    lines = len(source.splitlines())
    if lines > MOST_LINES_OF_A_FILE:
        yield f"{lines} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            if length > MOST_LINES_OF_A_FUNCTION:
                yield f"{node.name}: {length} lines"


def bad_habits(source: str) -> Iterator[str]:
    """What library code must not do, wherever it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in FORBIDDEN_CALLS:
                yield f"line {node.lineno}: {name}(): {FORBIDDEN_CALLS[name]}"
        elif isinstance(node, ast.Attribute) and node.attr == "environ":
            yield f"line {node.lineno}: os.environ: make it a configuration field"
        elif isinstance(node, ast.Global):
            yield f"line {node.lineno}: global {', '.join(node.names)}: pass it as an argument"
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"line {node.lineno}: bare except: name what can be raised"


def unfinished(source: str) -> Iterator[str]:
    for number, line in enumerate(source.splitlines(), 1):
        if UNFINISHED.search(line):
            yield f"line {number}: {line.strip()}"


def code_files() -> list[PurePath]:
    """Paths from the repository's root, those of tests left out: these mirror the tree and lie beside their data."""
    folders = [folder for folder in PACKAGES if folder != "tests"]
    files = [file for folder in folders for suffix in ("py", "sh") for file in (ROOT / folder).rglob(f"*.{suffix}")]
    return [PurePath(file.relative_to(ROOT)) for file in files if file.name != "__init__.py"]


def crowded(files: Iterable[PurePath]) -> Iterator[str]:
    """Folders in which nobody finds anything."""
    kinds = defaultdict(list)
    for file in files:
        kinds[file.parent, file.suffix].append(file)
    for (folder, suffix), found in kinds.items():
        if len(found) > MOST_FILES_OF_A_FOLDER:
            yield f"{folder}: {len(found)} files {suffix}, more than {MOST_FILES_OF_A_FOLDER}"


def related(files: Iterable[PurePath]) -> Iterator[str]:
    """Files whose common first word is the name of a folder that is not there."""
    words = defaultdict(list)
    for file in files:
        if file.suffix == ".py":
            words[str(file.parent), file.stem.split("_")[0]].append(file.name)
    for (folder, word), found in words.items():
        if len(found) > 1 and (folder, word) not in RELATED:
            yield f"{folder}: {', '.join(sorted(found))}: make {word}/ of them"


@pytest.mark.parametrize("rule", [crowded, related])
def test_the_tree_keeps_the_rule(rule: Callable[[Iterable[PurePath]], Iterator[str]]) -> None:
    assert not list(rule(code_files()))


def test_an_exception_that_is_none_any_more_is_removed() -> None:
    files = code_files()
    for folder, word in RELATED:
        found = [f for f in files if str(f.parent) == folder and f.suffix == ".py" and f.stem.split("_")[0] == word]
        assert len(found) > 1, (folder, word)


def test_a_tree_that_breaks_a_rule_is_seen() -> None:
    def tree(*names: str) -> list[PurePath]:
        return [PurePath("made", "up", name) for name in names]

    letters = [chr(ord("a") + number) for number in range(14)]
    assert list(crowded(tree(*(f"{letter}.py" for letter in letters)))) == ["made/up: 14 files .py, more than 13"]
    assert not list(
        crowded(tree(*(f"{letter}.py" for letter in letters[:13]), *(f"{letter}.sh" for letter in letters[:13])))
    )
    assert list(related(tree("run_fast.py", "run_slow.py", "walk.py"))) == [
        "made/up: run_fast.py, run_slow.py: make run/ of them"
    ]
    assert list(related(tree("run.py", "run_slow.py"))) == ["made/up: run.py, run_slow.py: make run/ of them"]
    assert not list(related([*tree("run.py", "runs.py", "run_all.sh"), PurePath("made", "run_slow.py")]))
    assert list(related([PurePath("other", "config.py"), PurePath("other", "config_errors.py")]))


@pytest.mark.parametrize(
    ("rule", "packages"),
    [(oversized, PACKAGES), (unfinished, PACKAGES), (bad_habits, (*LIBRARIES, "comfyui"))],
    ids=["sizes", "unfinished", "habits"],
)
def test_the_repository_keeps_the_rule(rule: Rule, packages: tuple[str, ...]) -> None:
    found = {name: broken for name, source in sources(packages) if (broken := list(rule(source)))}
    assert not found


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (oversized, "x = 1\n" * 401),
        (oversized, "def long():\n" + "    x = 1\n" * 60),
        (unfinished, "x = 1  # TO" + "DO later"),
        (bad_habits, "def f():\n    print(1)"),
        (bad_habits, "import pdb\npdb.set_trace()"),
        (bad_habits, "value = hasattr(x, 'cache')"),
        (bad_habits, "import os\nflag = os.environ['PAD_HQ']"),
        (bad_habits, "from os import getenv\nflag = getenv('PAD_HQ')"),
        (bad_habits, "def f():\n    global state\n    state = 1"),
        (bad_habits, "try:\n    f()\nexcept:\n    pass"),
    ],
)
def test_a_broken_rule_is_seen(rule: Rule, source: str) -> None:
    assert len(list(rule(source))) == 1


def test_ordinary_code_breaks_no_rule() -> None:
    source = "def f(x):\n    try:\n        return x.print\n    except ValueError:\n        raise\n"
    assert not [*oversized(source), *unfinished(source), *bad_habits(source)]
