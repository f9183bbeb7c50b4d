"""A target instead of settings: calibration files, and the pattern that meets a wish.

Source: docs/multistep.md, "Calibration". `harness.calibration.making` makes the files.
"""

import logging
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.methods import Method, MultistepSettings, make_config
from inference.config import MagiConfig
from inference.files import read_json
from metrics.tail import low_end
from multistep.config import Solver

logger = logging.getLogger(__name__)

Mode = Literal["t2v", "i2v", "v2v"]

# What has to be the same in a run for a calibration to speak of it, beside the weights.
CONDITIONS = ("num_steps", "window_size", "noise2clean_kvrange", "num_layers", "hidden_size")


class Ratio(BaseModel):
    """Of uncached over cached, pair by pair."""

    model_config = ConfigDict(extra="forbid")

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, pairs: Iterable[tuple[float, float]]) -> "Ratio":
        values = [uncached / cached for uncached, cached in pairs]
        return cls(median=statistics.median(values), min=min(values), max=max(values))


class Tried(BaseModel):
    """A pattern that another one was preferred to, with PSNR in dB over the calibration prompts; or a fitted solver
    that gained nothing, over the held-out ones.
    """

    model_config = ConfigDict(extra="forbid")

    pattern: tuple[int, ...]
    found_by: str
    mean: float
    low_end: float
    lowest: float

    @classmethod
    def of(cls, pattern: tuple[int, ...], found_by: str, psnr: Sequence[float]) -> "Tried":
        mean, low = round(statistics.mean(psnr), 2), round(low_end(psnr), 2)
        return cls(pattern=pattern, found_by=found_by, mean=mean, low_end=low, lowest=min(psnr))


class Entry(BaseModel):
    """One pattern, with the nearly-clean copies of a distilled model or without. `psnr`: dB against the uncached video,
    per calibration prompt; `checked_psnr`: per held-out one. `found_by`, `tried`: how the pattern was found, and what
    else of its length was run. `solver`: coefficients fitted to it, None for the rule.
    """

    model_config = ConfigDict(extra="forbid")

    pattern: tuple[int, ...]
    found_by: str | None = None
    tried: list[Tried] = []
    discard_nearly_clean_chunk: bool
    solver: Solver | None = None
    psnr: list[float]
    checked_psnr: list[float]
    flop_ratio: float
    seconds_ratio: Ratio

    @property
    def promised_psnr(self) -> float:
        """What 19 of 20 videos reach: the 5th percentile, of the calibration or of the held-out prompts, the lower."""
        return min(low_end(self.psnr), low_end(self.checked_psnr))


class Calibration(BaseModel):
    """A calibration file. `conditions`: what it holds for, by CONDITIONS. `mode`: what its videos were made from."""

    model_config = ConfigDict(extra="forbid")

    about: dict[str, Any]
    conditions: dict[str, Any]
    mode: Mode = "t2v"
    damping: float
    correct: bool
    entries: list[Entry]


def conditions_of(config: MagiConfig) -> dict[str, Any]:
    """CONDITIONS by name, and which weights; raises what reading their headers does."""
    from inference.model.weights import weights_fingerprint  # with torch, which no other part of this file needs

    values = {**config.runtime.model_dump(mode="json"), **config.model.model_dump(mode="json")}
    return {name: values[name] for name in CONDITIONS} | {"weights": weights_fingerprint(config)}


def calibration_path(config_file: str, num_steps: int) -> Path:
    """Where the calibration of a model and step count is looked for."""
    return Path("configs/calibration") / f"{Path(config_file).stem}_{num_steps}.json"


def load_calibration(path: Path, shown_as: str) -> Calibration:
    try:
        return Calibration.model_validate(read_json(path))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"calibration {shown_as} does not exist; make it with scripts/calibrate.sh, or name one with --calibration"
        ) from None
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{shown_as} is no calibration file: {'; '.join(problems[:3])}{more}") from None
    except (ValueError, IsADirectoryError) as error:
        raise ValueError(f"calibration {shown_as} cannot be read: {error}") from error


def calibrated_method(
    calibration: Calibration,
    source: str,
    config: MagiConfig,
    target_psnr: float | None,
    target_speedup: float | None,
    overrides: dict[str, Any],
    mode: Mode = "t2v",
) -> Method:
    """The method that meets the target, as multi-step reuse with a calibrated pattern.

    Solvers belong to the mode that they were fitted in; in another one the calibration's patterns are left.

    Raises:
        ValueError: the calibration is for other conditions, or no entry meets the target; with the numbers.
    """
    for name, value in conditions_of(config).items():
        if calibration.conditions.get(name) != value:
            raise ValueError(
                f"{source} was made with {name} {calibration.conditions.get(name)}, but this run has {value}; "
                "calibrate it (scripts/calibrate.sh)"
            )
    entries = calibration.entries
    if mode != calibration.mode:
        logger.warning("%s was made in mode %s; what it promises is not known for %s", source, calibration.mode, mode)
        entries = [entry for entry in entries if entry.solver is None]
    entry = choose(entries, source, target_psnr, target_speedup)
    logger.info(
        "%s: %d of %d steps computed; 19 of 20 videos reach %.1f dB, %.2f times as fast is expected (calibrated on %s)",
        *(source, len(entry.pattern), config.runtime.num_steps, entry.promised_psnr, entry.seconds_ratio.median),
        " ".join(str(calibration.about.get("device", {}).get(key, "?")) for key in ("type", "name")),
    )
    settings = {
        "pattern": entry.pattern,
        "pattern_steps": config.runtime.num_steps,
        "discard_nearly_clean_chunk": entry.discard_nearly_clean_chunk,
        "damping": calibration.damping,
        "correct": calibration.correct,
        "solver": None if entry.solver is None else entry.solver.model_dump(),
    }
    target = {"target_psnr": target_psnr} if target_psnr is not None else {"target_speedup": target_speedup}
    chosen = target | {
        "promised_psnr": round(entry.promised_psnr, 2),
        "expected_speedup": entry.seconds_ratio.median,
        "calibrated_on": calibration.about.get("device"),
    }
    method = Method("multistep", source, make_config(MultistepSettings, {**settings, **overrides}, source))
    return replace(method, chosen=chosen)


def choose(entries: Sequence[Entry], source: str, target_psnr: float | None, target_speedup: float | None) -> Entry:
    """The fastest entry that is good enough, or the best that is fast enough."""
    if target_psnr is not None:
        good = [entry for entry in entries if entry.promised_psnr >= target_psnr]
        if good:
            return max(good, key=lambda entry: entry.flop_ratio)
        best = max(entry.promised_psnr for entry in entries)
        raise ValueError(
            f"{source}: target_psnr {target_psnr:g} is above the highest that 19 of 20 calibrated videos reach, "
            f"{best:.1f} dB"
        )
    assert target_speedup is not None
    fast = [entry for entry in entries if entry.seconds_ratio.median >= target_speedup]
    if fast:
        return max(fast, key=lambda entry: entry.promised_psnr)
    most = max(entry.seconds_ratio.median for entry in entries)
    raise ValueError(f"{source}: target_speedup {target_speedup:g} is above the highest calibrated, {most:.2f}")
