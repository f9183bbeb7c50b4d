"""Parity of the caption cleaning: every prompt of ``text_clean.json``, after one and after two applications."""

from collections.abc import Iterator
from pathlib import Path

from inference.text.cleaning import clean_caption, clean_caption_once
from scripts.parity.common import CheckResult, read_json

FAMILY = "text"
INDEX_NAME = "text_clean.json"


def claims(name: str) -> bool:
    return name == INDEX_NAME


def _compare(case: str, quantity: str, actual: str, expected: str) -> CheckResult:
    """Exact comparison: error 0 or 1, and both texts in the note where they differ."""
    note = "" if actual == expected else f"got {actual[:80]!r}, expected {expected[:80]!r}"
    return CheckResult(FAMILY, case, quantity, error=float(actual != expected), tolerance=0.0, note=note)


def _check_item(case: str, item: dict) -> Iterator[CheckResult]:
    missing = [key for key in ("prompt", "once", "expected") if not isinstance(item.get(key), str)]
    if missing:
        yield CheckResult(FAMILY, case, "entry", error=1.0, tolerance=0.0, note=f"no text under {', '.join(missing)}")
        return
    yield _compare(case, "once", clean_caption_once(item["prompt"]), item["once"])
    yield _compare(case, "twice", clean_caption(item["prompt"]), item["expected"])


def check(directory: Path) -> Iterator[CheckResult]:
    """Every prompt of the index in ``directory``; nothing if the family is not there."""
    path = directory / INDEX_NAME
    if not path.exists():
        return
    items = read_json(path).get("items", [])
    if not items:
        yield CheckResult(FAMILY, INDEX_NAME, "entries", error=1.0, tolerance=0.0, note="the index lists no prompt")
    for number, item in enumerate(items):
        yield from _check_item(f"prompt {number}", item)
