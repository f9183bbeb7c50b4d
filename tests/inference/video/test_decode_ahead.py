"""Decoding beside denoising: same frames in the same order, errors in their turn, no thread left behind."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from inference.config import load_config
from inference.pipeline import MagiPipeline, RunReport, Sample
from inference.video.decode_ahead import THREAD_NAME, decode_ahead, overlaps

CPU = torch.device("cpu")
PATIENCE = 20.0  # seconds after which a test gives up waiting for the other thread


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


def latents(count: int) -> Iterator[Tensor]:
    return (torch.full((1, 2), float(number)) for number in range(count))


def doubled(chunk: Tensor) -> Tensor:
    return 2 * chunk


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_everything_comes_out_in_order(count: int) -> None:
    assert [int(part[0, 0]) for part in decode_ahead(latents(count), doubled, CPU)] == [
        2 * number for number in range(count)
    ]


def test_a_chunk_is_decoded_while_the_next_is_drawn() -> None:
    """Each side waits for the other, so in one thread this would stand still."""
    decoding, drawing = threading.Event(), threading.Event()

    def chunks() -> Iterator[Tensor]:
        yield torch.zeros(1)
        assert decoding.wait(PATIENCE), "the first chunk is not decoded while the second is drawn"
        drawing.set()
        yield torch.ones(1)

    def decode(chunk: Tensor) -> Tensor:
        decoding.set()
        assert drawing.wait(PATIENCE)
        assert threading.current_thread().name.startswith(THREAD_NAME)
        return chunk

    assert [float(part) for part in decode_ahead(chunks(), decode, CPU)] == [0.0, 1.0]


def test_at_most_one_chunk_waits() -> None:
    release, drawn = threading.Event(), []

    def chunks() -> Iterator[Tensor]:
        for number in range(6):
            drawn.append(number)
            if number == 2:
                release.set()  # drawn only after the first was decoded and handed out: `decode` would still wait
            yield torch.tensor(float(number))

    def decode(chunk: Tensor) -> Tensor:
        if chunk == 0:
            assert not release.wait(0.2), "a third chunk was drawn while the first was being decoded"
        return chunk

    parts = decode_ahead(chunks(), decode, CPU)
    assert float(next(parts)) == 0 and drawn == [0, 1]
    assert [float(part) for part in parts] == [1, 2, 3, 4, 5]


def test_an_error_of_decoding_is_raised_in_its_turn() -> None:
    def decode(chunk: Tensor) -> Tensor:
        if chunk[0, 0] == 2:
            raise ValueError("chunk 2 cannot be decoded")
        return chunk

    parts = decode_ahead(latents(5), decode, CPU)
    assert [float(next(parts)[0, 0]) for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="chunk 2 cannot be decoded"):
        next(parts)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_was_finished_before_an_interruption_comes_out_first(error: type[BaseException]) -> None:
    def chunks() -> Iterator[Tensor]:
        yield from latents(3)
        raise error("stopped")

    received = []
    with pytest.raises(error, match="stopped"):
        for part in decode_ahead(chunks(), doubled, CPU):
            received.append(float(part[0, 0]))
    assert received == [0, 2, 4]


def test_closing_drops_what_waits() -> None:
    decoded = []

    def decode(chunk: Tensor) -> Tensor:
        decoded.append(float(chunk[0, 0]))
        return chunk

    parts = decode_ahead(latents(100), decode, CPU)
    next(parts)
    parts.close()
    assert decoded in ([0.0], [0.0, 1.0])


@pytest.mark.parametrize(
    ("setting", "device", "ranks", "offloaded", "expected"),
    [
        ("auto", "cuda", 1, False, True),
        ("auto", "cuda", 1, True, False),
        ("auto", "cuda", 2, False, False),
        ("auto", "cpu", 1, False, False),
        (True, "cpu", 1, False, True),
        (True, "cuda", 1, True, True),
        (False, "cuda", 1, False, False),
    ],
)
def test_who_decodes_ahead(setting: str | bool, device: str, ranks: int, offloaded: bool, expected: bool) -> None:
    assert overlaps(setting, torch.device(device), ranks, offloaded) is expected


def test_several_ranks_refuse_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert not overlaps("auto", CPU, 2, False) and not caplog.messages
        assert not overlaps(True, CPU, 2, False)
    assert "overlap_decode is ignored: 2 processes share" in caplog.text


def test_a_video_is_the_same(checkpoint: Path) -> None:
    config = load_config(checkpoint / "distill.json").with_overrides(num_frames=76)
    plain = MagiPipeline.load(config, CPU)
    ahead = MagiPipeline(
        config.with_overrides(overlap_decode=True), plain.dit, plain.vae, plain.t5, plain.tokens, plain.device
    )
    assert ahead.overlap and not plain.overlap
    sample, report = Sample("a cat"), RunReport()
    expected, found = list(plain.frames(sample)), list(ahead.frames(sample, report=report))
    assert [len(part) for part in found] == [len(part) for part in expected] == [24, 24, 24, 4]
    assert torch.equal(torch.cat(found), torch.cat(expected))
    assert report.frames == 76 and report.seconds["decode"] > 0 and report.kv_cache_bytes > 0

    unfinished = ahead.frames(sample)
    assert torch.equal(next(unfinished), expected[0])
    unfinished.close()
