"""A target instead of settings: calibration files, and the pattern that meets a wish.

Source: docs/multistep.md, "Calibration". `harness.calibration.making` makes the files.
"""

import logging
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.methods import Method, MultistepSettings, make_config
from inference.config import MagiConfig
from inference.files import read_json

logger = logging.getLogger(__name__)

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


class Entry(BaseModel):
    """One pattern, with the nearly-clean copies of a distilled model or without. `psnr`: dB against the uncached video,
    per calibration prompt; `checked_psnr`: per held-out one.
    """

    model_config = ConfigDict(extra="forbid")

    pattern: tuple[int, ...]
    discard_nearly_clean_chunk: bool
    psnr: list[float]
    checked_psnr: list[float]
    flop_ratio: float
    seconds_ratio: Ratio

    @property
    def expected_psnr(self) -> float:
        """What most prompts reach: the mean less one standard deviation."""
        return statistics.mean(self.psnr) - (statistics.stdev(self.psnr) if len(self.psnr) > 1 else 0.0)


class Calibration(BaseModel):
    """A calibration file. `conditions`: what it holds for, by CONDITIONS."""

    model_config = ConfigDict(extra="forbid")

    about: dict[str, Any]
    conditions: dict[str, Any]
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
) -> Method:
    """The method that meets the target, as multi-step reuse with a calibrated pattern.

    Raises:
        ValueError: the calibration is for other conditions, or no entry meets the target; with the numbers.
    """
    for name, value in conditions_of(config).items():
        if calibration.conditions.get(name) != value:
            raise ValueError(
                f"{source} was made with {name} {calibration.conditions.get(name)}, but this run has {value}; "
                "calibrate it (scripts/calibrate.sh)"
            )
    entry = choose(calibration.entries, source, target_psnr, target_speedup)
    logger.info(
        "%s: %d of %d steps computed; %.1f dB and %.2f times as fast are expected (calibrated on %s)",
        *(source, len(entry.pattern), config.runtime.num_steps, entry.expected_psnr, entry.seconds_ratio.median),
        " ".join(str(calibration.about.get("device", {}).get(key, "?")) for key in ("type", "name")),
    )
    settings = {
        "pattern": entry.pattern,
        "pattern_steps": config.runtime.num_steps,
        "discard_nearly_clean_chunk": entry.discard_nearly_clean_chunk,
        "damping": calibration.damping,
        "correct": calibration.correct,
    }
    target = {"target_psnr": target_psnr} if target_psnr is not None else {"target_speedup": target_speedup}
    chosen = target | {
        "expected_psnr": entry.expected_psnr,
        "expected_speedup": entry.seconds_ratio.median,
        "calibrated_on": calibration.about.get("device"),
    }
    method = Method("multistep", source, make_config(MultistepSettings, {**settings, **overrides}, source))
    return replace(method, chosen=chosen)


def choose(entries: Sequence[Entry], source: str, target_psnr: float | None, target_speedup: float | None) -> Entry:
    """The fastest entry that is good enough, or the best that is fast enough."""
    if target_psnr is not None:
        good = [entry for entry in entries if entry.expected_psnr >= target_psnr]
        if good:
            return max(good, key=lambda entry: entry.flop_ratio)
        best = max(entry.expected_psnr for entry in entries)
        raise ValueError(f"{source}: target_psnr {target_psnr:g} is above the highest calibrated, {best:.1f} dB")
    assert target_speedup is not None
    fast = [entry for entry in entries if entry.seconds_ratio.median >= target_speedup]
    if fast:
        return max(fast, key=lambda entry: entry.expected_psnr)
    most = max(entry.seconds_ratio.median for entry in entries)
    raise ValueError(f"{source}: target_speedup {target_speedup:g} is above the highest calibrated, {most:.2f}")
