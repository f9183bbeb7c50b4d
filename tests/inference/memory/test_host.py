"""Runs that the machine's memory cannot hold are refused at once, with the numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inference.config import load_config
from inference.memory.dry_run import dry_run, largest_forward
from inference.memory.host import PROCESS_BYTES, check_host, free_host_bytes, refuse_too_large
from inference.memory.plan import estimate_run, fewest_alike, plan_memory
from inference.pipeline import plan
from tests.paths import CONFIGS
from tests.tiny import tiny_config


def test_free_memory_is_what_linux_calls_available_or_what_a_container_is_left(tmp_path: Path) -> None:
    meminfo, most, used = (tmp_path / name for name in ("meminfo", "max", "current"))
    meminfo.write_text("MemTotal:  9000 kB\nMemFree: 10 kB\nMemAvailable:    5000 kB\n")
    assert free_host_bytes(meminfo, (most, used)) == 5000 * 1024
    most.write_text("max\n")
    used.write_text("1000000\n")
    assert free_host_bytes(meminfo, (most, used)) == 5000 * 1024
    most.write_text("3000000\n")
    assert free_host_bytes(meminfo, (most, used)) == 2_000_000
    assert free_host_bytes(tmp_path / "none", (most, used)) == 2_000_000


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_frames": 10**9}, "the latents of 1000000000 frames"),
        ({"video_size_h": 160_000, "video_size_w": 160_000}, "160000x160000 need"),
    ],
)
def test_sizes_beyond_all_measure_cost_nothing_to_refuse(fields: dict[str, int], said: str) -> None:
    config = tiny_config().with_overrides(**fields)
    with pytest.raises(ValueError, match=said):
        refuse_too_large(config, 2**34)
    with pytest.raises(ValueError, match=said):
        plan(config, 0)


def test_a_run_is_refused_from_the_byte_on_that_it_is_estimated_to_need() -> None:
    config, schedule = plan(tiny_config(num_frames=240, text_cache="somewhere"), 0)
    size = replace(estimate_run(config, schedule, torch.device("cpu")), text_encoder=0)
    found = plan_memory(config, size, None)
    needed = PROCESS_BYTES + found.device_bytes + found.host_bytes
    check_host(config, schedule, free=needed)
    with pytest.raises(ValueError, match=r"240 frames of 32x32 by this model need about \d+\.\d GB of memory on a CPU"):
        check_host(config, schedule, free=needed - 1)


@pytest.mark.parametrize("steps", [12, 16, 64])
@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.31, 0.999])
@pytest.mark.parametrize(("preset", "prefix"), [("nano", 0), ("4.5B_base", 72), ("4.5B_distill", 30)])
def test_fewer_steps_have_the_same_largest_forward(preset: str, prefix: int, threshold: float, steps: int) -> None:
    config = load_config(CONFIGS / f"{preset}.json").with_overrides(
        num_frames=144, num_steps=steps, distill_nearly_clean_chunk_threshold=threshold
    )
    config, schedule = plan(config, prefix)
    given = schedule.offset * config.runtime.chunk_width
    shorter = config.with_overrides(num_steps=fewest_alike(schedule))
    assert shorter.runtime.num_steps == 4
    assert largest_forward(dry_run(shorter, given)) == largest_forward(dry_run(config, given))
