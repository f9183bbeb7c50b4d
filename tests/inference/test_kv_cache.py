"""The plain cache as a moving window: the numbers of the whole history kept, in the room of what can be reached."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.methods import read_method
from inference.config import MagiConfig
from inference.kv_cache import KVCache
from inference.placement.kv_rows import HostRows
from inference.sampler import Sampler, kv_geometry, make_schedule
from inference.schedule import Schedule
from tests.paths import CONFIGS
from tests.tiny import TinyCaptions, tiny_config, tiny_dit, tiny_noise

CPU = torch.device("cpu")
WINDOW = [5, 4, 3, 2]
PRESETS = sorted((CONFIGS.parent / "method").glob("*.yaml"))


class WholeHistory(KVCache):
    """Room for every chunk of the video, whatever can be reached."""

    def _capacity(self, schedule: Schedule) -> int:
        return schedule.chunk_num


def make(
    config: MagiConfig, whole: bool, given: int = 0, method: Path | None = None, offload: bool = False
) -> tuple[list[Tensor], KVCache]:
    config = config.with_overrides(kv_offload=offload)
    chosen = None if method is None else read_method(str(method), {})
    geometry = kv_geometry(config, CPU)
    bounded = chosen is not None and getattr(chosen.settings, "compress_kv_cache", False)
    cache = WholeHistory(geometry) if whole and not bounded else KVCache(geometry)
    cache = chosen.make_cache(geometry) if bounded else cache
    sampler = Sampler(tiny_dit(config), config, cache, None if chosen is None else chosen.make_reuse())
    prefix = tiny_noise(6, seed=5)[:, :, :given] if given else None
    chunks = make_schedule(config, given).chunk_num
    return [chunk.latents for chunk in sampler.run(tiny_noise(chunks), TinyCaptions(config), prefix)], cache


@pytest.mark.parametrize("three_pass", [False, True])
@pytest.mark.parametrize(
    ("window", "clean", "given", "room"),
    [
        (WINDOW, 1, 0, 5),
        (WINDOW, -1, 8, 6),  # a finished chunk sees the one before it
        (WINDOW, 1, 34, 6),  # five given chunks lie there when the first new one enters
        ([2, 5, 1, 3], 1, 1, 6),
        ([2, 2, 1, 1], 1, 0, 5),
        ([], 1, 0, 10),
    ],
)
def test_a_moving_window_changes_no_number(
    three_pass: bool, window: list[int], clean: int, given: int, room: int
) -> None:
    config = tiny_config(three_pass, num_frames=240 - 4 * given, noise2clean_kvrange=window, clean_chunk_kvrange=clean)
    usual, whole = make(config, whole=True, given=given)
    moved, bounded = make(config, whole=False, given=given)
    assert len(usual) == len(moved) > 4
    assert all(torch.equal(a, b) for a, b in zip(usual, moved, strict=True))
    one_chunk = 24 * bounded.geometry.bytes_per_token
    assert (whole.bytes, bounded.bytes) == (10 * one_chunk, room * one_chunk)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_what_it_was_with_the_whole_history_kept(preset: Path) -> None:
    config = tiny_config(num_frames=192, num_steps=16, noise2clean_kvrange=WINDOW)
    for offload in (False, True):
        usual, _ = make(config, whole=True, method=preset)
        moved, cache = make(config, whole=False, method=preset, offload=offload)
        assert all(torch.equal(a, b) for a, b in zip(usual, moved, strict=True))
        assert cache.bytes == 5 * 24 * cache.geometry.bytes_per_token
        assert isinstance(cache.rows, HostRows) == offload


def test_the_room_does_not_depend_on_the_length() -> None:
    for frames in (240, 14_400, 24 * 10**9):
        schedule = make_schedule(tiny_config(num_frames=frames, noise2clean_kvrange=WINDOW), 0)
        cache = KVCache(kv_geometry(tiny_config(), CPU))
        assert cache.planned_rows(schedule) == 5 * 24 * cache.geometry.bytes_per_token


@pytest.mark.parametrize("windows", [WINDOW, [2, 5, 1, 3], [1], [3, 1], [9, 1, 1, 7], []])
@pytest.mark.parametrize("clean", [1, -1, 4])
@pytest.mark.parametrize(("chunks", "offset"), [(1, 0), (5, 0), (12, 0), (12, 3), (9, 7)])
def test_what_can_be_reached_is_what_later_steps_say(windows: list[int], clean: int, chunks: int, offset: int) -> None:
    schedule = Schedule(chunks, offset, 8, 4, tuple(windows), clean)
    most = offset + 1
    for step in schedule.steps:
        reached = [entry.key_start for later in schedule.steps[step.number :] for entry in later.window]
        reached += [later.clean_key_start for later in schedule.steps[step.number :] if later.clean is not None]
        assert schedule.first_reached(step) == min(reached), step.number
        most = max(most, step.window[-1].chunk + 1 - min(reached))
    assert schedule.chunks_reached == (most if windows else chunks)
    # No more room is needed in a video of any length.
    assert not windows or replace(schedule, chunk_num=10**9).chunks_reached >= most


def test_a_chunk_that_was_dropped_is_not_read_as_another() -> None:
    config = tiny_config(num_frames=240, noise2clean_kvrange=WINDOW)
    _, cache = make(config, whole=False)
    assert cache.first == 5
    with pytest.raises(KeyError, match="chunk 4 has no place: the cache begins with chunk 5"):
        cache.visible(9, 4)
