"""The 5th percentile, by hand."""

import pytest

from metrics.tail import low_end


def test_between_the_values_next_to_it() -> None:
    assert low_end([float(value) for value in range(21)]) == pytest.approx(1.0)
    assert low_end([30.0, 10.0]) == pytest.approx(11.0)
    assert low_end([7.0]) == 7.0


def test_no_values() -> None:
    with pytest.raises(ValueError, match="5th percentile of no values"):
        low_end([])
