"""The method and the configuration of one video, from what a program or a page asks for. Without torch: a wish that
cannot be fulfilled is refused before anything is loaded.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.calibration.files import Mode, calibrated_method, calibration_path, load_calibration
from harness.methods import Method, read_method
from inference.config import MagiConfig, resolve_path

Path_ = str | Path


def choose(
    config: MagiConfig,
    config_file: Path_,
    *,
    method: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    target_psnr: float | None = None,
    target_speedup: float | None = None,
    seconds: float | None = 10.0,
    num_steps: int | None = None,
    seed: int | None = None,
    mode: Mode = "t2v",
) -> tuple[Method, MagiConfig]:
    """The method and the configuration of a video: ``config`` with what is given here. Nothing is loaded.

    Args:
        config_file: where ``config`` is from; a calibration goes by its name.
        method: a preset's name or a method file; ``parameters`` replace its settings.
        target_psnr, target_speedup: in place of a method, the fastest calibrated settings that keep so many dB, or the
            best that are so fast.
        seconds: how long; None goes on until it is ended.
        mode: t2v, i2v or v2v, whatever is given.

    Raises:
        ValueError: settings that do not go together, or no calibration for them.
    """
    frames = "endless" if seconds is None else max(1, round(seconds * config.runtime.fps))
    wanted = {"num_frames": frames, "num_steps": num_steps, "seed": seed}
    changes = {name: value for name, value in wanted.items() if value is not None}
    return settle(
        lambda found: found.apply_window(config).with_overrides(**changes),
        config_file,
        method=method,
        parameters=parameters,
        target_psnr=target_psnr,
        target_speedup=target_speedup,
        mode=mode,
    )


def settle(
    configure: Callable[[Method], MagiConfig],
    config_file: Path_,
    *,
    method: str | None,
    parameters: Mapping[str, Any] | None,
    target_psnr: float | None,
    target_speedup: float | None,
    calibration: str | None = None,
    mode: Mode = "t2v",
) -> tuple[Method, MagiConfig]:
    """The method, by name or by what it is to reach, and the configuration that ``configure`` makes for it.

    Args:
        calibration: in place of the one that ``config_file`` and its steps have by name.

    Raises:
        ValueError: settings that do not go together, or no calibration for them.
    """
    given = {"method": method, "target_psnr": target_psnr, "target_speedup": target_speedup}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)} exclude each other: a target chooses the method; give one of them")
    for name in chosen:
        if name != "method" and not 0 < given[name] < math.inf:
            raise ValueError(f"{name} must be a number above 0, got {given[name]:g}")
    if target_psnr is None and target_speedup is None:
        if calibration is not None:
            raise ValueError("a calibration needs a target, target_psnr or target_speedup")
        found = read_method(method, dict(parameters or {}))
        return found, configure(found)
    config = configure(read_method(None, {}))
    source = calibration or str(calibration_path(str(config_file), config.runtime.num_steps))
    known = load_calibration(resolve_path(source), source)
    found = calibrated_method(known, source, config, target_psnr, target_speedup, dict(parameters or {}), mode)
    return found, config
