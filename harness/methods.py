"""From a method file and the user's flags to who decides, who advances, and the cache of a run: where model and
caching are put together. Parameters are read and checked without torch, which takes seconds to import.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from flowcache.config import CompressionConfig, FlowCacheConfig
from inference.config import MagiConfig, resolve_path
from inference.files import read_yaml
from inference.record import RunRecord
from multistep.config import MultistepConfig
from teacache.config import TeaCacheConfig

if TYPE_CHECKING:
    from inference.kv_cache import KVCache, KVGeometry
    from inference.reuse import Reuse
    from inference.schedule import Schedule


class TeaCacheSettings(CompressionConfig, TeaCacheConfig):
    """TeaCache's parameters with those of the compressed cache, which serves any method."""


class MultistepSettings(CompressionConfig, MultistepConfig):
    """Parameters of multi-step reuse with those of the compressed cache."""

    def problems(self, schedule: "Schedule") -> Iterator[str]:
        yield from MultistepConfig.problems(self, schedule)
        yield from CompressionConfig.problems(self, schedule)


Settings = FlowCacheConfig | TeaCacheSettings | MultistepSettings
Model = TypeVar("Model", bound=BaseModel)

# What a method file may name, with the parameters it takes.
METHODS: dict[str, type[Settings] | None] = {
    "none": None,
    "flowcache": FlowCacheConfig,
    "teacache": TeaCacheSettings,
    "multistep": MultistepSettings,
}

# The method files that can be called by their names.
PRESETS = "configs/method"
# The source of a method that flags alone make.
COMMAND_LINE = "command line"

# A method may state the key window its figures go with; it replaces the model configuration's.
WINDOW = "noise2clean_kvrange"


@dataclass(frozen=True)
class Method:
    """A caching method with its settings; ``settings`` is None where nothing is cached. ``chosen``: the target that
    the settings were chosen for and what they are expected to give, where a calibration chose them.
    """

    name: str
    source: str
    settings: Settings | None = None
    window: tuple[int, ...] | None = None
    chosen: Mapping[str, Any] | None = None

    def make_reuse(self) -> "Reuse":
        from inference.reuse import Reuse

        return Reuse() if self.settings is None else make_reuse(self.settings)

    @property
    def remembered(self) -> int:
        """Tensors of a chunk's latents that are kept of each chunk in the window: velocities, and what was gained."""
        if isinstance(self.settings, MultistepConfig) and self.settings.solver is not None:
            return len(self.settings.solver.levels)
        return 0 if self.settings is None else 3 if self.settings.correct else 2

    def make_cache(self, geometry: "KVGeometry") -> "KVCache":
        from flowcache.kv_cache import CompressedKVCache
        from inference.kv_cache import KVCache

        if self.settings is None or not self.settings.compress_kv_cache:
            return KVCache(geometry)
        return CompressedKVCache(geometry, self.settings)

    def apply_window(self, config: MagiConfig) -> MagiConfig:
        return config if self.window is None else config.with_overrides(noise2clean_kvrange=list(self.window))

    def check(self, schedule: "Schedule") -> None:
        """ValueError where the settings do not fit the schedule, before anything is loaded."""
        problems = [] if self.settings is None else list(self.settings.problems(schedule))
        if problems:
            raise ValueError(f"{self.source}: " + "; ".join(problems))

    def why_nothing_was_reused(self, reuse: "Reuse", record: RunRecord) -> str | None:
        """One line on a run with this method that advanced no chunk from memory, and what would; None for any other."""
        if self.settings is None or record.reused or not record.computed:
            return None
        from flowcache.decider import ChunkwiseDecider
        from teacache.decider import WindowDecider

        decider, steps = reuse.decider, record.num_steps
        name = self.name if self.source == COMMAND_LINE else Path(self.source).stem
        if not isinstance(decider, ChunkwiseDecider | WindowDecider):
            return f"{name} reused nothing: its pattern computes all of {steps} steps"
        threshold, smallest = decider.threshold, decider.smallest
        if threshold == 0:
            return None  # as asked
        if math.isinf(smallest):
            warmup = decider.config.warmup(steps)
            return f"{name} reused nothing: of {steps} steps with warmup_steps {warmup} there is none at which it may"
        given = decider.config.rel_l1_thresh
        enough = smallest * given / threshold  # in the units of the setting
        unit = 10.0 ** math.floor(math.log10(enough))
        here = f" ({threshold:g} at {steps} steps)" if threshold != given else ""
        return (
            f"{name} reused nothing: rel_l1_thresh is {given:g}{here}, and over a step of {steps} latents changed by "
            f"{smallest:.2g} at least; --rel_l1_thresh {(math.floor(enough / unit) + 1) * unit:.2g} would reuse some"
        )

    def to_json_dict(self) -> dict[str, Any]:
        settings = {} if self.settings is None else self.settings.model_dump(mode="json")
        chosen = {} if self.chosen is None else {"chosen": dict(self.chosen)}
        return {"method": self.name, "source": self.source, **chosen, **settings}


def make_reuse(settings: FlowCacheConfig | TeaCacheConfig | MultistepConfig) -> "Reuse":
    """The method's decider, the advancer that the settings ask for, and the passes that they keep."""
    from flowcache.decider import ChunkwiseDecider
    from inference.advance import MemoryAdvancer
    from inference.reuse import Reuse
    from multistep.decider import PatternDecider
    from multistep.solver import SolverAdvancer, SolverLevels
    from teacache.decider import WindowDecider

    copies = not settings.discard_nearly_clean_chunk
    if isinstance(settings, MultistepConfig):
        decider: Any = PatternDecider(settings)
        if settings.solver is not None:
            levels = SolverLevels(settings.solver, settings.pattern or ())
            return Reuse(decider, SolverAdvancer(settings.solver), settings.clean_pass, copies, levels)
    elif isinstance(settings, FlowCacheConfig):
        decider = ChunkwiseDecider(settings)
    else:
        decider = WindowDecider(settings)
    return Reuse(decider, MemoryAdvancer(settings), settings.clean_pass, copies)


def add_method(parser: argparse.ArgumentParser) -> None:
    """``--method``, also called ``--method_config``: a preset or a file."""
    parser.add_argument(
        "--method",
        "--method_config",
        dest="method_config",
        metavar="NAME|FILE",
        help=f"caching method: {', '.join(presets())}, or a YAML file like theirs in {PRESETS}; without it nothing is "
        "cached",
    )


def presets() -> list[str]:
    """Names of the method files that the checkout brings."""
    return sorted(path.stem for path in resolve_path(PRESETS).glob("*.yaml"))


def method_path(method: str) -> str:
    """The file of a method: of a preset that is called so, or the path that ``method`` is."""
    if method in presets() and not Path(method).is_file():  # nor where a folder, such as that of our code, is called so
        return str(Path(PRESETS) / f"{method}.yaml")
    return method


def read_method(method: str | None, overrides: dict[str, Any]) -> Method:
    """The method of a preset or a file with ``overrides`` on top (flag over file over default).

    Without one, parameters alone mean FlowCache, and nothing at all means no caching.
    """
    path = None if method is None else method_path(method)
    values = {} if path is None else load_method(resolve_path(path))
    source = COMMAND_LINE if path is None else str(Path(path))
    window = read_window(values.pop(WINDOW, None), source)
    name = values.pop("method", "flowcache" if values or overrides else "none")
    if name not in METHODS:
        raise ValueError(f"{source}: unknown method {name!r}; known are {', '.join(METHODS)}")
    model = METHODS[name]
    if model is None:
        if values or overrides:
            given = ", ".join(sorted({str(key) for key in (*values, *overrides)}))
            raise ValueError(
                f"{source}: method none takes no parameters, but these were given: {given}; leave them out, or use "
                "another method"
            )
        return Method(name, source, window=window)
    if path is None:
        refuse_foreign_parameters(name, overrides)
    return Method(name, source, make_config(model, {**values, **overrides}, source), window)


def refuse_foreign_parameters(method: str, given: Mapping[str, Any]) -> None:
    """ValueError where parameters given without a method are not those of ``method``, with the one whose they are."""
    by_name = parameters()
    foreign = {name: [*by_name[name]] for name in given if name in by_name and method not in by_name[name]}
    for name, methods in foreign.items():
        example = next((preset for preset in presets() if preset.startswith(methods[0])), methods[0])
        raise ValueError(
            f"--{name} belongs to {' and '.join(methods)}; say which method with --method, such as --method {example}"
        )


def load_method(path: Path) -> dict[str, Any]:
    """The contents of a method file (YAML); ValueError with the path where it is no mapping."""
    try:
        raw = read_yaml(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"method file {path} does not exist, and no preset is called so; presets are {', '.join(presets())}"
        ) from None
    except (ValueError, IsADirectoryError) as error:
        raise ValueError(f"method file {path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"method file {path} must hold a mapping of parameters, not {type(raw).__name__}")
    return raw


def make_config(model: type[Model], values: dict[str, Any], source: str) -> Model:
    """Check ``values``; ValueError lists every problem with the name of ``source``."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        known = ", ".join(sorted(model.model_fields))
        lines = []
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                lines.append(f"unknown parameter {name!r}; known are {known}")
            else:
                lines.append(f"{name} = {problem['input']!r}: {problem['msg']}")
        raise ValueError(f"{source}: " + "; ".join(lines)) from error


def read_window(value: Any, source: str) -> tuple[int, ...] | None:
    """A method file's key window; None where it states none and the model configuration's holds."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(entry) is int for entry in value):
        raise ValueError(f"{source}: {WINDOW} = {value!r} is no list of chunks such as [5, 4, 3, 2], or [] for all")
    return tuple(value)


def parameters() -> dict[str, dict[str, FieldInfo]]:
    """The name of every parameter that can be a flag, with the methods that take it."""
    found: dict[str, dict[str, FieldInfo]] = {}
    for method, model in METHODS.items():
        for name, field in ({} if model is None else model.model_fields).items():
            if field.json_schema_extra != {"flag": False}:
                found.setdefault(name, {})[method] = field
    return found


def add_parameters(parser: argparse.ArgumentParser) -> None:
    """One flag per parameter, by its own name; without default, so that the method file's value stands."""
    group = parser.add_argument_group(
        "method parameters", "Each replaces the method file's value; the defaults hold where the file states none."
    )
    for name, by_method in parameters().items():
        field = next(iter(by_method.values()))
        group.add_argument(
            f"--{name}",
            type=parse_value,
            default=UNSET,
            metavar=value_form(field.annotation),
            help=f"{describe(by_method)} (default: {defaults(by_method)})".replace("%", "%%"),
        )


def describe(by_method: dict[str, FieldInfo]) -> str:
    """What a parameter means: to the first method, and to those to which it means something else."""
    (first, field), *others = by_method.items()
    own = [f"{method}: {other.description}" for method, other in others if other.description != field.description]
    only = [f"{first} only"] if not others else []
    return "; ".join([str(field.description), *own, *only])


def defaults(by_method: dict[str, FieldInfo]) -> str:
    """The default, and those of methods that have another: 1.0; multistep: 0.8."""
    first, *others = by_method.items()
    common = spelled(first[1].default)
    own = [f"{method}: {spelled(field.default)}" for method, field in others if field.default != first[1].default]
    return "; ".join([common, *own])


def value_form(annotation: Any) -> str:
    """What a parameter's value looks like, for the help text: {token,frame,chunk}, true|false, INT or FLOAT."""
    if get_origin(annotation) is Literal:
        return "{" + ",".join(get_args(annotation)) + "}"
    if get_origin(annotation) in (Union, UnionType):
        return "|".join("null" if member is NoneType else value_form(member) for member in get_args(annotation))
    if get_origin(annotation) is Annotated:
        return value_form(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        return f"{value_form(get_args(annotation)[0])},..."
    return {bool: "true|false", int: "INT", float: "FLOAT"}.get(annotation, "VALUE")


def spelled(value: Any) -> str:
    """A value as a method file and a flag spell it."""
    return {None: "null", True: "true", False: "false"}[value] if value is None or type(value) is bool else str(value)


def given_parameters(args: argparse.Namespace) -> dict[str, Any]:
    """The parameters that were given on the command line."""
    given = {name: getattr(args, name) for name in parameters()}
    return {name: value for name, value in given.items() if value is not UNSET}


class _Unset:
    """Not given; None is a value of its own."""


UNSET = _Unset()


def parse_value(text: str) -> Any:
    """A flag's value: true, null, 5, 0.01, token, or several with commas between them."""
    if "," in text or text.startswith("["):
        return [parse_value(part.strip()) for part in text.strip("[] ").split(",")]
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
