"""The method and the configuration of one video, from what a program or a page asks for. Without torch: a wish that
cannot be fulfilled is refused before anything is loaded.
"""

from collections.abc import Mapping
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
    given = {"method": method, "target_psnr": target_psnr, "target_speedup": target_speedup}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)} exclude each other; give one")
    frames = "endless" if seconds is None else max(1, round(seconds * config.runtime.fps))
    wanted = {"num_frames": frames, "num_steps": num_steps, "seed": seed}
    changes = {name: value for name, value in wanted.items() if value is not None}
    if target_psnr is None and target_speedup is None:
        found = read_method(method, dict(parameters or {}))
        return found, found.apply_window(config).with_overrides(**changes)
    config = config.with_overrides(**changes)
    path = calibration_path(str(config_file), config.runtime.num_steps)
    calibration = load_calibration(resolve_path(str(path)), str(path))
    given_too = dict(parameters or {})
    found = calibrated_method(calibration, str(path), config, target_psnr, target_speedup, given_too, mode)
    return found, config
