"""Room on the disk and time: counted for long videos as for short ones, and refused before anything is loaded."""

import logging
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from harness.methods import Method, read_method
from harness.model_check import Request
from harness.run import need
from inference.config import MagiConfig
from inference.memory.dry_run import dry_run
from inference.pipeline import plan
from metrics.flops import TransformerSize, run_flops
from tests.tiny import tiny_config

CPU = torch.device("cpu")
Usage = namedtuple("Usage", "total used free")


def long_config(chunks: int, **overrides: object) -> MagiConfig:
    return tiny_config(num_frames=24 * chunks, num_steps=8, **overrides)


@pytest.mark.parametrize("window", [[5, 4, 3, 2], []], ids=["key window", "whole history"])
@pytest.mark.parametrize("prefix", [0, 1, 48])
def test_the_work_of_a_long_video_follows_from_shorter_ones(window: list[int], prefix: int) -> None:
    request = Request(long_config(26, noise2clean_kvrange=window), read_method(None, {}), prefix)
    config, schedule = plan(request.config, prefix)
    record = dry_run(config, config.runtime.chunk_width * schedule.offset)
    size = TransformerSize.of(config.model.model_dump())
    forwards, flop = need.whole_work(request)
    assert forwards == len(record.forwards)
    assert flop == pytest.approx(run_flops(size, record.forwards), rel=1e-12)


@pytest.mark.parametrize("chunks", [1, 4])
def test_the_work_of_a_short_video_is_counted(chunks: int) -> None:
    request = Request(long_config(chunks), read_method(None, {}))
    size = TransformerSize.of(request.config.model.model_dump())
    assert need.whole_work(request) == (
        len(request.record().forwards),
        run_flops(size, request.record().forwards),
    )
    assert need.least_flop(request.config, request.method) < need.whole_work(request)[1]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the disk has free and how fast the processor is, to be changed."""
    machine = {"free": 1e12, "rate": 1e11}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**15, 0, int(machine["free"])))
    monkeypatch.setattr(need, "product_rate", lambda device, dtype: machine["rate"])
    return machine


def refuse(config: MagiConfig, method: Method, folder: Path, lossless: bool = False) -> None:
    need.refuse_too_long(config, method, CPU, folder / "not" / "there" / "video.mp4", lossless)


def test_a_video_that_the_disk_has_no_room_for_is_refused(
    machine: dict[str, float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, method = long_config(1000), read_method(None, {})
    size = need.video_bytes(config, lossless=False)
    machine["free"] = size
    refuse(config, method, tmp_path)
    assert not caplog.records
    machine["free"] = size / 2
    refuse(config, method, tmp_path)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    machine["free"] = size / 11
    with pytest.raises(ValueError, match=r"24000 frames of .* GB are free on that disk: lower num_frames"):
        refuse(config, method, tmp_path)
    machine["free"] = size
    with pytest.raises(ValueError, match="GB are free"):
        refuse(config, method, tmp_path, lossless=True)


def test_a_video_that_would_take_months_is_refused(
    machine: dict[str, float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, method = long_config(10**8), read_method(None, {})
    seconds = need.least_flop(config, method) / machine["rate"]
    days = seconds / need.DAY
    machine["rate"] *= days / 2  # two days
    refuse(config, method, tmp_path)
    assert "will take more than 48 h on cpu" in caplog.text or "more than 2.0 days on cpu" in caplog.text
    machine["rate"] /= 50
    with pytest.raises(ValueError, match=r"would take more than 100\.0 days on cpu: lower num_frames"):
        refuse(config, method, tmp_path)
    # A method may compute one step in twenty.
    refuse(config, read_method("flowcache_fast", {}), tmp_path)


def test_a_short_video_is_not_timed(machine: dict[str, float], tmp_path: Path) -> None:
    machine["rate"] = 0.0  # to divide by it would fail
    refuse(long_config(10), read_method(None, {}), tmp_path)
