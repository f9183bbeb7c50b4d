"""From a method file and the user's flags to the policy and the cache of a run: where model and caching are put
together.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from flowcache.config import FlowCacheConfig, load_method, make_config
from flowcache.kv_cache import CompressedKVCache
from flowcache.policy import ChunkwiseReuse
from inference.config import MagiConfig, resolve_path
from inference.kv_cache import KVCache, KVGeometry
from inference.reuse import NoReuse, ReusePolicy
from inference.schedule import Schedule

METHODS = ("none", "flowcache")

# A method may state the key window its figures go with; it replaces the model configuration's.
WINDOW = "noise2clean_kvrange"


@dataclass(frozen=True)
class Method:
    """A caching method with its settings; ``flowcache`` is None where nothing is cached."""

    name: str
    source: str
    flowcache: FlowCacheConfig | None = None
    window: tuple[int, ...] | None = None

    def make_policy(self) -> ReusePolicy:
        return NoReuse() if self.flowcache is None else ChunkwiseReuse(self.flowcache)

    def make_cache(self, geometry: KVGeometry) -> KVCache:
        if self.flowcache is None or not self.flowcache.compress_kv_cache:
            return KVCache(geometry)
        return CompressedKVCache(geometry, self.flowcache)

    def apply_window(self, config: MagiConfig) -> MagiConfig:
        return config if self.window is None else config.with_overrides(noise2clean_kvrange=list(self.window))

    def check(self, schedule: Schedule) -> None:
        """ValueError where the settings do not fit the schedule, before anything is loaded."""
        problems = [] if self.flowcache is None else list(self.flowcache.problems(schedule))
        if problems:
            raise ValueError(f"{self.source}: " + "; ".join(problems))

    def to_json_dict(self) -> dict[str, Any]:
        settings = {} if self.flowcache is None else self.flowcache.model_dump()
        return {"method": self.name, "source": self.source, **settings}


def read_method(path: str | None, overrides: dict[str, Any]) -> Method:
    """The method of a file with ``overrides`` on top (flag over file over default).

    Without a file, parameters alone mean FlowCache, and nothing at all means no caching.
    """
    values = {} if path is None else load_method(resolve_path(path))
    source = "command line" if path is None else str(Path(path))
    window = read_window(values.pop(WINDOW, None), source)
    name = values.pop("method", "flowcache" if values or overrides else "none")
    if name not in METHODS:
        raise ValueError(f"{source}: unknown method {name!r}; known are {', '.join(METHODS)}")
    if name == "none":
        if values or overrides:
            given = ", ".join(sorted({str(key) for key in (*values, *overrides)}))
            raise ValueError(
                f"{source}: method none takes no parameters, but these were given: {given}; leave them out, or use "
                "method flowcache"
            )
        return Method(name, source, window=window)
    return Method(name, source, make_config({**values, **overrides}, source), window)


def read_window(value: Any, source: str) -> tuple[int, ...] | None:
    """A method file's key window; None where it states none and the model configuration's holds."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(entry) is int for entry in value):
        raise ValueError(f"{source}: {WINDOW} = {value!r} is no list of chunks such as [5, 4, 3, 2], or [] for all")
    return tuple(value)


def add_parameters(parser: argparse.ArgumentParser) -> None:
    """One flag per FlowCache parameter, by its own name; without default, so that the method file's value stands."""
    group = parser.add_argument_group(
        "FlowCache parameters", "Each replaces the method file's value; the defaults hold where the file states none."
    )
    for name, field in FlowCacheConfig.model_fields.items():
        group.add_argument(
            f"--{name}",
            type=parse_value,
            default=UNSET,
            metavar=value_form(field.annotation),
            help=f"{field.description} (default: {spelled(field.default)})".replace("%", "%%"),
        )


def value_form(annotation: Any) -> str:
    """What a parameter's value looks like, for the help text: {token,frame,chunk}, true|false, INT or FLOAT."""
    if get_origin(annotation) is Literal:
        return "{" + ",".join(get_args(annotation)) + "}"
    if get_origin(annotation) in (Union, UnionType):
        return "|".join("null" if member is NoneType else value_form(member) for member in get_args(annotation))
    if get_origin(annotation) is Annotated:
        return value_form(get_args(annotation)[0])
    return {bool: "true|false", int: "INT", float: "FLOAT"}.get(annotation, "VALUE")


def spelled(value: Any) -> str:
    """A value as a method file and a flag spell it."""
    return {None: "null", True: "true", False: "false"}[value] if value is None or type(value) is bool else str(value)


def given_parameters(args: argparse.Namespace) -> dict[str, Any]:
    """The FlowCache parameters that were given on the command line."""
    given = {name: getattr(args, name) for name in FlowCacheConfig.model_fields}
    return {name: value for name, value in given.items() if value is not UNSET}


class _Unset:
    """Not given; None is a value of its own."""


UNSET = _Unset()


def parse_value(text: str) -> Any:
    """A flag's value as YAML would read it: true, null, 5, 0.01, token."""
    parsers: tuple[Callable[[str], Any], ...] = (int, float)
    words = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for parser in parsers:
        try:
            return parser(text)
        except ValueError:
            continue
    return text
