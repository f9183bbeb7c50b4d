"""Places in the bounded buffer: arithmetic that can be done by hand."""

import pytest

from flowcache.ledger import Ledger


def test_chunks_take_places_in_order() -> None:
    ledger = Ledger(3, 10)
    for chunk in (0, 1, 1, 2):
        ledger.enter(chunk)
    assert [ledger.span(chunk) for chunk in range(3)] == [(0, 10), (10, 20), (20, 30)]
    assert ledger.full and ledger.used == 30
    with pytest.raises(ValueError, match="no room for chunk 3: 30 of 30 tokens"):
        ledger.enter(3)


def test_compaction_moves_whole_chunks_up() -> None:
    ledger = Ledger(5, 10)
    for chunk in range(5):
        ledger.enter(chunk)
    assert ledger.count_clean(1) == 2 and ledger.clean_tokens(2) == 20
    ledger.compact(2, 10)
    assert ledger.whole == [2, 3, 4] and ledger.used == 40 and not ledger.full
    assert ledger.span(2) == (10, 20)
    ledger.enter(5)
    assert ledger.span(5) == (40, 50)
    assert ledger.clean_tokens(ledger.count_clean(2)) == 20


def test_what_a_chunk_sees_before_and_after_compaction() -> None:
    ledger = Ledger(5, 10)
    for chunk in range(5):
        ledger.enter(chunk)
    assert ledger.visible(4, 0) == (0, 50)
    assert ledger.visible(4, 3) == (30, 50)
    ledger.compact(2, 10)
    assert ledger.visible(4, 0) == (0, 40)  # kept tokens, then 2, 3, 4
    assert ledger.visible(4, 1) == (0, 40)  # a window that begins before the first whole chunk takes all kept tokens
    assert ledger.visible(4, 2) == (10, 40)  # one that begins with it takes none
    assert ledger.visible(4, 4) == (30, 40)


def test_wrong_use_is_refused() -> None:
    ledger = Ledger(4, 10)
    for chunk in range(4):
        ledger.enter(chunk)
    ledger.compact(2, 10)
    with pytest.raises(KeyError, match="chunk 0 is not stored whole"):
        ledger.span(0)
    with pytest.raises(ValueError, match="already compressed"):
        ledger.enter(1)
    with pytest.raises(ValueError, match="cannot keep 40 of 20"):
        ledger.compact(1, 40)
