"""What is said about a configuration that cannot be used: every problem, in the words of the file."""

import difflib
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

Sections = Mapping[str, type[BaseModel]]


class ConfigError(ValueError):
    """A configuration that cannot be used. ``problems`` lists every one that was found, one sentence each."""

    def __init__(self, source: str, problems: Sequence[str]):
        self.problems = list(problems)
        super().__init__("\n".join([f"{source}: {len(self.problems)} problem(s)", *(f"  - {p}" for p in problems)]))


def explain_all(error: ValidationError, sections: Sections) -> list[str]:
    """The problems pydantic found, one sentence each. ``sections``: the section names of the file and their models."""
    return [problem for detail in error.errors() for problem in _explain(detail, sections)]


def unknown_field(name: str, section: str, sections: Sections) -> str:
    """Why ``name`` is refused in ``section`` ("" for the top level or any section), with where it may belong."""
    place = f"{section}.{name}" if section else name
    home = next((key for key, model in sections.items() if name in model.model_fields), None)
    if home:
        return f"{place} is unknown; it belongs in {home}"
    known = [field for key, model in sections.items() if section in ("", key) for field in model.model_fields]
    close = difflib.get_close_matches(name, [*known, *sections], n=1, cutoff=0.6)
    return f"{place} is unknown" + (f"; did you mean {close[0]}?" if close else "")


def multiples_around(value: int, factor: int) -> str:
    """The positive multiples of ``factor`` next to ``value``, for a hint."""
    below = value // factor * factor
    return f"{below} and {below + factor}" if below else str(factor)


def _explain(detail: Any, sections: Sections) -> list[str]:
    location = [str(part) for part in detail["loc"]]
    place = ".".join(location)
    if detail["type"] == "value_error":  # raised by our own validator with one argument per problem
        return [str(problem) for problem in detail["ctx"]["error"].args]
    if detail["type"] == "missing":
        return [f"{place} is missing"]
    if detail["type"] == "extra_forbidden":
        return [unknown_field(location[-1], ".".join(location[:-1]), sections)]
    message = detail["msg"][0].lower() + detail["msg"][1:]
    given = textwrap.shorten(json.dumps(detail["input"], default=str), 80)
    return [f"{place} is {given}: {message}"]
