"""Keys and values in fewer bits: what is stored, what comes back, and rows that lie packed."""

import pytest
import torch
from torch import Tensor

from inference.placement import packing
from inference.placement.kv_rows import DeviceRows, HostRows
from inference.placement.packed_rows import PackedRows
from inference.placement.packing import (
    BLOCK_ROWS,
    grid_over,
    pack_rows,
    packed_row_bytes,
    unpack_rows,
)
from tests.inference.parallel.cases import numbers

CPU = torch.device("cpu")
WIDTH, GROUPS, BLOCK = 8, 2, 6


def naive(kv: Tensor, bits: int) -> Tensor:
    """Every key on the grid of its channel over all tokens, every value on that of its token, number by number."""
    found, most, width = kv.clone().float(), 2**bits - 1, kv.shape[-1] // 2
    for group in range(kv.shape[1]):
        for channel in range(width):
            line = kv[:, group, channel].tolist()
            step = (max(line) - min(line)) / most
            for token, value in enumerate(line):
                found[token, group, channel] = min(line) + round((value - min(line)) / step) * step
        for token in range(len(kv)):
            line = kv[token, group, width:].tolist()
            offset, step = (float(torch.tensor(x).half()) for x in (min(line), (max(line) - min(line)) / most))
            for channel, value in enumerate(line):
                code = min(max(round((value - offset) / step), 0), most)
                found[token, group, width + channel] = offset + code * step
    return found


def there_and_back(kv: Tensor, bits: int) -> Tensor:
    grid = grid_over(kv[..., : kv.shape[-1] // 2], 0, bits)
    packed = torch.empty(*kv.shape[:2], packed_row_bytes(bits, kv.shape[-1] // 2), dtype=torch.uint8)
    pack_rows(kv, grid, bits, packed)
    out = torch.empty_like(kv)
    unpack_rows(packed, grid, bits, out)
    return out


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_are_those_of_the_definition(bits: int) -> None:
    kv = numbers(7, GROUPS, 2 * WIDTH)
    assert torch.allclose(there_and_back(kv, bits), naive(kv, bits), atol=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_nothing_moves_by_more_than_half_a_step(bits: int) -> None:
    kv = numbers(50, GROUPS, 2 * WIDTH) * torch.logspace(-2, 2, 2 * WIDTH)
    error = (there_and_back(kv, bits) - kv).abs()
    key_step = grid_over(kv[..., :WIDTH], 0, bits).step
    value_step = grid_over(kv[..., WIDTH:], -1, bits).step
    assert (error[..., :WIDTH] <= 0.501 * key_step).all()
    # Offset and step of values are float16: a few parts in ten thousand of the largest besides.
    slack = kv[..., WIDTH:].abs().amax(dim=-1, keepdim=True) * 2**-9
    assert (error[..., WIDTH:] <= 0.501 * value_step + slack).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_blocks_of_rows_change_nothing(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kv = numbers(23, GROUPS, 2 * WIDTH)
    whole = there_and_back(kv, bits)
    monkeypatch.setattr(packing, "BLOCK_ROWS", 5)
    assert torch.equal(there_and_back(kv, bits), whole) and BLOCK_ROWS > 23


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_odd_numbers(bits: int, dtype: torch.dtype) -> None:
    for same in (0.0, -3.0, 65504.0, 1e-30):
        kv = torch.full((5, GROUPS, 2 * WIDTH), same, dtype=dtype)
        assert torch.allclose(there_and_back(kv, bits).float(), kv.float(), rtol=1e-3, atol=1e-7)
    kv = numbers(5, GROUPS, 2 * WIDTH).to(dtype)
    for place in (1, WIDTH + 1):
        kv[2, 0, place] = torch.nan  # must not become a number again
        assert there_and_back(kv, bits)[2, 0, place].isnan()
    assert there_and_back(kv, bits)[..., 2:WIDTH].isfinite().all()


def rows_of(bits: int, host: bool, tokens: int = 4 * BLOCK, layers: int = 3) -> PackedRows:
    stored = (HostRows if host else DeviceRows)(torch.uint8, CPU)
    rows = PackedRows(stored, bits, BLOCK, torch.float32)
    rows.allocate((layers, tokens, GROUPS, 2 * WIDTH))
    return rows


def chunk(seed: int, tokens: int = BLOCK) -> Tensor:
    return torch.randn(tokens, GROUPS, 2 * WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
def test_what_a_forward_writes_it_reads_as_it_was(bits: int, host: bool) -> None:
    rows = rows_of(bits, host)
    for start in (0, BLOCK):
        rows.prepare([(0, start)] if start else [])
        for layer in range(3):
            rows.write(layer, start, chunk(10 * layer + start))
            view = rows.layer(layer)[: start + BLOCK]
            assert torch.equal(view[start:], chunk(10 * layer + start))
            if start:
                assert torch.equal(view[:BLOCK], there_and_back(chunk(10 * layer), bits))
    # The next forward sees both as they are stored.
    rows.prepare([(0, 2 * BLOCK)])
    for layer in range(3):
        expected = [there_and_back(chunk(10 * layer + start), bits) for start in (0, BLOCK)]
        assert torch.equal(rows.layer(layer)[: 2 * BLOCK], torch.cat(expected))


@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
def test_moved_and_squeezed(bits: int, host: bool) -> None:
    """Against a model of the rows that knows what every token should read as."""
    rows = rows_of(bits, host)
    for layer in range(3):
        known = torch.zeros(4 * BLOCK, GROUPS, 2 * WIDTH)
        for number in range(4):
            rows.write(layer, number * BLOCK, chunk(number))
            known[number * BLOCK : (number + 1) * BLOCK] = there_and_back(chunk(number), bits)
        with rows.edit(layer, 2 * BLOCK, BLOCK + 2) as part:
            assert torch.equal(part, known[: 2 * BLOCK])
            part[: BLOCK + 2] = part[1 : BLOCK + 3].clone()
            left = part[: BLOCK + 2].clone()
        rows.move(layer, 2 * BLOCK, 4 * BLOCK, BLOCK + 2)
        known[BLOCK + 2 : 3 * BLOCK + 2] = known[2 * BLOCK :].clone()  # whole chunks are not packed again
        known[:BLOCK] = there_and_back(left[:BLOCK], bits)
        known[BLOCK : BLOCK + 2] = there_and_back(left[BLOCK:], bits)
        rows.prepare([(0, 3 * BLOCK + 2)])
        assert torch.equal(rows.layer(layer)[: 3 * BLOCK + 2], known[: 3 * BLOCK + 2])
        # A new chunk finds the room that was made, and part of a block can be read.
        rows.write(layer, 3 * BLOCK - 2, chunk(9))
        rows.prepare([(3, BLOCK), (3 * BLOCK, 4 * BLOCK - 2)])
        rows.unpacked.fill_(-7)
        view = rows.layer(layer)
        assert torch.equal(view[3:BLOCK], known[3:BLOCK])
        assert torch.equal(view[3 * BLOCK : 4 * BLOCK - 2], there_and_back(chunk(9), bits)[2:])
        assert (view[:3] == -7).all() and (view[BLOCK : 3 * BLOCK] == -7).all()


@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
def test_chunks_that_move_by_whole_chunks_take_their_grids_along(bits: int, host: bool) -> None:
    rows = rows_of(bits, host)
    for number in range(4):
        rows.write(1, number * BLOCK, chunk(number) * 10**number)
    rows.move(1, 2 * BLOCK, 4 * BLOCK, 0)
    rows.prepare([(0, 2 * BLOCK)])
    expected = torch.cat([there_and_back(chunk(number) * 10**number, bits) for number in (2, 3)])
    assert torch.equal(rows.layer(1)[: 2 * BLOCK], expected)


@pytest.mark.parametrize("bits", [8, 4])
def test_packing_what_was_packed_changes_nothing(bits: int) -> None:
    once = there_and_back(chunk(1, 40), bits)
    assert torch.allclose(there_and_back(once, bits), once, atol=1e-5)
