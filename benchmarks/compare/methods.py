"""What is compared: a YAML file with a method a row, to entries that can be run (docs/compare.md, "The file")."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from benchmarks.compare.goals import Goal
from harness.calibration.files import Calibration, calibration_path, conditions_of, load_calibration
from harness.calibration.files import Entry as Calibrated
from harness.methods import WINDOW, Method, make_config, read_method
from inference.config import MagiConfig, load_config, resolve_path
from inference.files import read_yaml
from inference.pipeline import plan

Count = Annotated[int, Field(ge=1)]
MULTISTEP = "configs/method/multistep.yaml"


class Row(BaseModel):
    """One method as the file names it. Shares are of the comparison's step count, such as 1/4."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: str
    group: str
    file: str | None = Field(None, description="method file (default: none, or multistep where a pattern is given)")
    parameters: dict[str, Any] = Field({}, description="replace those of the method file")
    window: list[int] | None = Field(None, description="key window; [] is full history (default: the method's)")
    steps: str | None = Field(None, description="share of the steps: the video is denoised in fewer of them")
    every: Count | None = Field(None, description="pattern: every n-th step of a stage, all chunks of the window")
    calibrated: str | None = Field(None, description="calibrated pattern with this share of the steps")
    fitted: bool = Field(False, description="with `calibrated`: by the solver that was fitted to the pattern")
    reference: str | None = Field(None, description="uncached row to compare with (default: the one of this window)")
    shown: bool = Field(False, description="in the side-by-side video")

    @field_validator("steps", "calibrated")
    @classmethod
    def _share(cls, value: str | None) -> str | None:
        if value is not None and not 0 < Fraction(value) <= 1:
            raise ValueError(f"a share of the steps lies above 0 and is at most 1, not {value}")
        return value

    @model_validator(mode="after")
    def _one_pattern(self) -> "Row":
        given = [name for name in ("steps", "every", "calibrated") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other")
        if self.fitted and self.calibrated is None:
            raise ValueError("fitted goes with calibrated, the share of the steps")
        return self

    @property
    def method_file(self) -> str:
        patterned = self.every is not None or self.calibrated is not None
        return self.file or (MULTISTEP if patterned else "configs/method/none.yaml")


class Comparison(BaseModel):
    """The file. `groups` says in a sentence each what the methods of a group do, in the order of the report."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    config_file: str = "configs/model/nano.json"
    calibration: str | None = Field(None, description="calibration file (default: the model's and step count's)")
    num_frames: Count | None = None
    num_steps: Count | None = None
    held_out_set: Literal["captions", "combinations"] = "captions"
    prompts: Count = 8
    seeds: Count = 1
    lpips: bool = True
    groups: dict[str, str]
    methods: Annotated[list[Row], Field(min_length=1)]
    goals: list[Goal] = []

    @model_validator(mode="after")
    def _names(self) -> "Comparison":
        names = [row.name for row in self.methods]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"methods named twice: {', '.join(twice)}")
        used = {row.group for row in self.methods} | {group for goal in self.goals for group in goal.groups_named}
        unknown = sorted(used - set(self.groups))
        if unknown:
            raise ValueError(f"groups without a description: {', '.join(unknown)}; described are {list(self.groups)}")
        return self


@dataclass(frozen=True)
class Entry:
    """A method ready to run. `reference` is None for a video that others are compared with."""

    name: str
    group: str
    method: Method
    config: MagiConfig
    reference: str | None
    shown: bool

    @property
    def window(self) -> tuple[int, ...]:
        return tuple(self.config.runtime.noise2clean_kvrange)

    def describe(self) -> dict[str, Any]:
        """What determines the video besides model, sample and machine."""
        settings = {} if self.method.settings is None else self.method.settings.model_dump(mode="json")
        return {"method": self.method.name, "settings": settings, "config": self.config.to_json_dict(full=True)}


def read_comparison(path: str, overrides: dict[str, Any]) -> Comparison:
    """The file with ``overrides`` on top; ValueError and FileNotFoundError name it."""
    file = resolve_path(path)
    try:
        raw = read_yaml(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"comparison {path} does not exist; see configs/compare/") from None
    except (ValueError, IsADirectoryError) as error:
        raise ValueError(f"comparison {path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"comparison {path} must hold a mapping, not {type(raw).__name__}")
    return make_config(Comparison, {**raw, **overrides}, path)


def base_config(comparison: Comparison) -> MagiConfig:
    """The model configuration with the comparison's length and step count."""
    wanted = {name: getattr(comparison, name) for name in ("num_frames", "num_steps")}
    config = load_config(comparison.config_file)
    return config.with_overrides(**{name: value for name, value in wanted.items() if value is not None})


def make_entries(
    comparison: Comparison, config: MagiConfig, patterns: list[str] | None
) -> tuple[list[Entry], dict[str, str]]:
    """The methods to run, with the references they need in front, and why others are left out.

    Args:
        patterns: names or groups of methods, with wildcards; None for all.

    Raises:
        ValueError: a row that does not fit, no reference for it, or a pattern that nothing matches.
    """
    entries: dict[str, Entry] = {}
    skipped: dict[str, str] = {}
    for row in comparison.methods:
        try:
            method = _method(row, comparison, config)
        except FileNotFoundError as error:
            if row.calibrated is None:
                raise
            skipped[row.name] = str(error)
            continue
        entries[row.name] = _entry(row, method, config, entries)
    chosen = list(entries.values()) if patterns is None else list(_chosen(entries, patterns))
    references = [entries[entry.reference] for entry in chosen if entry.reference is not None]
    return list({entry.name: entry for entry in (*references, *chosen)}.values()), skipped


def _chosen(entries: dict[str, Entry], patterns: list[str]) -> Iterator[Entry]:
    for pattern in patterns:
        found = [e for e in entries.values() if fnmatchcase(e.name, pattern) or fnmatchcase(e.group, pattern)]
        if not found:
            groups = sorted({entry.group for entry in entries.values()})
            raise ValueError(f"no method or group is called {pattern!r}; groups are {groups}, methods {list(entries)}")
        yield from found


def _entry(row: Row, method: Method, config: MagiConfig, earlier: dict[str, Entry]) -> Entry:
    own = method.apply_window(config)
    if row.window is not None:
        own = own.with_overrides(**{WINDOW: row.window})
    window = own.runtime.noise2clean_kvrange
    if row.steps is not None:
        own = own.with_overrides(num_steps=_steps(row, row.steps, config))
    _, schedule = plan(own, 0)
    try:
        method.check(schedule)
    except ValueError as error:
        raise ValueError(f"{row.name}: {error}") from error
    name = row.reference or next((e.name for e in earlier.values() if e.reference is None and e.window == window), None)
    if name is not None and (name not in earlier or earlier[name].reference is not None):
        raise ValueError(f"{row.name}: its reference {name!r} is no uncached method listed above it")
    if name is None and (method.settings is not None or row.steps is not None):
        raise ValueError(f"{row.name}: no uncached method with key window {list(window)} is listed above it")
    return Entry(row.name, row.group, method, own, name, row.shown)


def _steps(row: Row, share: str, config: MagiConfig) -> int:
    steps = Fraction(share) * config.runtime.num_steps
    if steps.denominator != 1:
        raise ValueError(f"{row.name}: {share} of {config.runtime.num_steps} steps is no whole number")
    return int(steps)


def _method(row: Row, comparison: Comparison, config: MagiConfig) -> Method:
    steps = config.runtime.num_steps
    pattern: dict[str, Any] = {}
    if row.every is not None:
        length = config.runtime.steps_per_stage
        pattern = {"pattern": [step for step in range(steps) if step % length % row.every == 0]}
    elif row.calibrated is not None:
        source = comparison.calibration or str(calibration_path(comparison.config_file, steps))
        calibration = load_calibration(resolve_path(source), source)
        entry = _calibrated(row, calibration, source, config)
        pattern = {"damping": calibration.damping, "correct": calibration.correct, "pattern": list(entry.pattern)}
        if entry.solver is not None:
            pattern["solver"] = entry.solver.model_dump()
    if pattern:
        pattern["pattern_steps"] = steps
    return read_method(row.method_file, pattern | row.parameters)


def _calibrated(row: Row, calibration: Calibration, source: str, config: MagiConfig) -> Calibrated:
    for name, value in conditions_of(config).items():
        # A pattern says when velocities bend; it may be tried with another key window too.
        if name != WINDOW and calibration.conditions.get(name) != value:
            raise ValueError(
                f"{row.name}: {source} was made with {name} {calibration.conditions.get(name)}, not {value}; calibrate "
                "this (scripts/calibrate.sh)"
            )
    length = round(Fraction(row.calibrated or "1") * config.runtime.num_steps)
    discard = bool(row.parameters.get("discard_nearly_clean_chunk", False))
    alike = [entry for entry in calibration.entries if (entry.solver is not None) == row.fitted]
    found = [entry for entry in alike if len(entry.pattern) == length]
    if not found:
        lengths = sorted({len(entry.pattern) for entry in alike})
        what = "fitted solver" if row.fitted else "pattern"
        raise ValueError(f"{row.name}: {source} has no {what} of {length} steps; it has {lengths}")
    return next((entry for entry in found if entry.discard_nearly_clean_chunk == discard), found[0])


def group_order(comparison: Comparison, entries: list[Entry]) -> list[str]:
    """The groups that are present, in the file's order."""
    return [group for group in comparison.groups if any(entry.group == group for entry in entries)]


def default_output(comparison_file: str) -> Path:
    """outputs/compare for the full comparison, outputs/compare_NAME for another one."""
    name = Path(comparison_file).stem
    return Path("outputs") / ("compare" if name == "full" else f"compare_{name}")
