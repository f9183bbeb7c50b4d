"""What a sampling run makes, as its configuration file says (docs/sampling.md, "Configuration")."""

import argparse
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from harness.methods import method_path, parse_value
from inference.config import require_path, resolve_path
from inference.files import read_yaml
from inference.video.fitting import Fit
from sampling.physics_iq import Mode, VerifiedPrompts
from sampling.vbench import DIMENSIONS

Count = Annotated[int, Field(ge=1)]
# Files and folders among the fields.
PATHS = ("config_file", "method_config", "data", "output", "descriptions", "augmented_prompts")
# A worker's line in the queue has one digit for a sample's failed attempts.
MOST_ATTEMPTS = 9
# How the configurations begin that runs leave; others are never replaced.
LEFT_BY = "# the settings of this folder's samples, left by scripts/sample.py\n"


class SamplingRun(BaseModel):
    """The fields that every benchmark has. Paths are from the working directory, or else from the checkout's root."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    data: str = Field(description="folder of the benchmark's prompts and clips")
    output: str | None = Field(None, description="where videos go (default: outputs/BENCHMARK/MODEL_NAME)")
    model_name: str | None = Field(None, description="names the run (default: of model, method and mode)")
    config_file: str = Field("configs/model/nano.json", description="model configuration, MAGI-1's JSON format")
    method_config: str = Field(
        "configs/method/none.yaml", description="method: a preset's name, or a file like those in configs/method/"
    )
    method_overrides: dict[str, Any] = Field({}, description="method parameters that replace the method file's")
    seed: Annotated[int, Field(ge=0)] | None = Field(None, description="base seed (default: the configuration's)")
    num_frames: Count | None = Field(None, description="video frames (default: the configuration's; Physics-IQ: 5 s)")
    num_steps: Count | None = Field(None, description="denoising steps (default: the configuration's)")
    video_size_h: Count | None = Field(None, description="height in pixels (default: the configuration's)")
    video_size_w: Count | None = Field(None, description="width in pixels (default: the configuration's)")
    workers: Count | Literal["auto"] = Field(
        "auto", description="processes of this machine: auto is one per GPU, without GPUs one per core up to four"
    )
    device: str = Field("auto", description="auto (GPUs in turn where there are any), cpu, cuda, cuda:1, ...")
    threads: Count = Field(1, description="CPU threads of each worker; results are the same for the same number")
    attempts: Annotated[int, Field(ge=1, le=MOST_ATTEMPTS)] = Field(3, description="tries of a sample that fails")
    lease_seconds: Annotated[float, Field(gt=0)] = Field(
        120.0, description="a worker without a sign of life for so long loses its sample to another"
    )


class VBenchRun(SamplingRun):
    """VBench (docs/sampling.md, "VBench")."""

    benchmark: Literal["vbench"]
    dimensions: list[str] = Field(list(DIMENSIONS), min_length=1, description="dimensions to sample for, all 16")
    samples_per_prompt: Count = Field(5, description="indices of each prompt")
    flickering_samples: Count = Field(25, description="indices of each prompt of temporal_flickering")
    augmented_prompts: str | None = Field(None, description="file or folder of longer prompts for the model")
    suite: Literal["auto", "vbench", "vbench_long"] = Field(
        "auto", description="what judges them: auto is VBench-Long for videos of five seconds and more"
    )


class PhysicsIqRun(SamplingRun):
    """Physics-IQ (docs/sampling.md, "Physics-IQ")."""

    benchmark: Literal["physics_iq"]
    mode: Mode = Field("v2v", description="i2v from the switch frame, v2v from the conditioning clip")
    layout: Literal["original", "verified"] = Field("original", description="original benchmark or Verified")
    prompt_sets: list[VerifiedPrompts] = Field(["op"], min_length=1, description="prompts of layout verified: op, bpp")
    runs: Annotated[int, Field(ge=1, le=99)] = Field(4, description="runs of layout verified, each with its own noise")
    descriptions: str | None = Field(None, description="descriptions.csv, where it is not at its official place")
    score: bool = Field(True, description="end with the scores")


class PromptsRun(SamplingRun):
    """Videos of one's own prompts (docs/sampling.md, "Your own prompts"); ``data`` is their file."""

    benchmark: Literal["prompts"]
    samples_per_prompt: Count = Field(1, description="videos of each prompt, with one seed after the other")
    fit: Fit = Field("crop", description="images and clips of another aspect ratio: crop, pad or stretch")


Run = VBenchRun | PhysicsIqRun | PromptsRun
RUNS = (VBenchRun, PhysicsIqRun, PromptsRun)
_ADAPTER: TypeAdapter[Run] = TypeAdapter(Annotated[Run, Field(discriminator="benchmark")])


def read_run(path: str | Path, overrides: dict[str, Any] | None = None) -> Run:
    """The configuration file, or that of a folder with samples, with ``overrides`` on top.

    ``method_overrides`` are merged, everything else is replaced. Raises FileNotFoundError, and ValueError with every
    problem.
    """
    file = require_path(path, "sampling configuration")
    if file.is_dir():
        # The folder that sampling has named at its end.
        file /= "sampling.yaml"
        if not file.is_file():
            raise FileNotFoundError(f"{path} is a folder without a sampling.yaml: no run has left its samples there")
    try:
        values = read_yaml(file)
    except (ValueError, IsADirectoryError) as error:
        raise ValueError(f"{file} is not a YAML file: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold a mapping of settings, not {type(values).__name__}")
    given = dict(overrides or {})
    parameters = {**(values.get("method_overrides") or {}), **given.pop("method_overrides", {})}
    merged = {**values, **given, "method_overrides": parameters}
    if isinstance(merged.get("method_config"), str):
        merged["method_config"] = method_path(merged["method_config"])
    try:
        return _ADAPTER.validate_python(merged)
    except ValidationError as error:
        raise ValueError(f"{file}: " + "; ".join(map(_explain, error.errors()))) from error


def _explain(problem: Any) -> str:
    # The first part of the place is the benchmark, which the discriminator put there.
    name = ".".join(str(part) for part in problem["loc"][1:]) or "benchmark"
    if problem["type"] == "extra_forbidden":
        return f"unknown setting {name!r} for benchmark {problem['loc'][0]}"
    return f"{name}: {problem['msg']}" + ("" if problem["type"] == "missing" else f", got {problem['input']!r}")


def as_yaml(run: Run) -> str:
    """A configuration as a file that means the same from any folder: every path absolute."""
    values = run.model_dump(mode="json")
    for name in PATHS:
        if values.get(name) is not None:
            values[name] = str(resolve_path(values[name]).absolute())
    return LEFT_BY + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """One flag per field, by its own name; without default, so that the file's value stands."""
    group = parser.add_argument_group("settings (each replaces the configuration file's value)")
    fields = {name: field for model in RUNS for name, field in model.model_fields.items()}
    for name, field in fields.items():
        if name not in ("benchmark", "method_overrides"):
            help_text = (field.description or "").replace("%", "%%")
            kind, names = _flag_type(field.annotation), [f"--{name}"]
            if name == "method_config":
                names = ["--method", *names]
            several = {"nargs": "+"} if kind is parse_list else {}
            group.add_argument(
                *names, dest=name, type=kind, default=argparse.SUPPRESS, metavar="X", help=help_text, **several
            )


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given on the command line."""
    fields = {name for model in RUNS for name in model.model_fields}
    given = {name: value for name, value in vars(args).items() if name in fields}
    # A list may be given with commas, with blanks, or with both between its entries.
    return {name: [*chain(*value)] if isinstance(value, list) else value for name, value in given.items()}


def _flag_type(annotation: Any) -> Callable[[str], Any]:
    """How a flag's text becomes the value of a field: texts as they are, lists with commas between their entries."""
    if annotation in (str, str | None):
        return str
    return parse_list if get_origin(annotation) is list else parse_value


def parse_list(text: str) -> list[Any]:
    return [parse_value(part.strip()) for part in text.strip("[] ").split(",") if part.strip()]
