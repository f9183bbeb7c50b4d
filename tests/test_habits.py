"""House rules that no linter knows: sizes, and what library code must not do."""

import ast
import re
from collections.abc import Callable, Iterator

import pytest

from tests.paths import ROOT

LIBRARIES = ("inference", "flowcache", "teacache", "multistep", "metrics")
PACKAGES = (*LIBRARIES, "harness", "sampling", "scripts", "benchmarks", "example", "tests")

Rule = Callable[[str], Iterator[str]]

MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60

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


@pytest.mark.parametrize(
    ("rule", "packages"),
    [(oversized, PACKAGES), (unfinished, PACKAGES), (bad_habits, LIBRARIES)],
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
