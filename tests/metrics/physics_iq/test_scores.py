"""The formulas of both Physics-IQ scores against plain loops, their rounding, and figures found by hand."""

import numpy as np
import pytest

from metrics.physics_iq.scores import (
    Comparison,
    Take,
    ViewResult,
    compare,
    compare_view,
    original_score,
    set_score,
    verified_components,
    verified_score,
)

NOTHING = np.zeros((3, 4, 5), bool)


def random_take(seed: int, share: float = 0.4, shape: tuple[int, int, int] = (3, 4, 5)) -> Take:
    rng = np.random.default_rng(seed)
    return Take(rng.integers(0, 256, (*shape, 3), dtype=np.uint8), rng.uniform(size=shape) < share)


def comparison(mse: float, spatiotemporal: float, spatial: float, weighted: float) -> Comparison:
    """Of a video of two frames, whose mean is as given."""
    return Comparison((mse, mse), (spatiotemporal, spatiotemporal), spatial, weighted)


def result(first: Comparison, variance: Comparison) -> ViewResult:
    return ViewResult(first, comparison(9, 9, 9, 9), variance)  # the second take counts nowhere


def test_mse_is_the_mean_over_pixels_and_channels_of_each_frame() -> None:
    x, y = random_take(0), random_take(1)
    expected = []
    for one, two in zip(x.pictures, y.pictures, strict=True):
        squares = [(int(a) / 255 - int(b) / 255) ** 2 for a, b in zip(one.flat, two.flat, strict=True)]
        expected.append(sum(squares) / len(squares))
    assert compare(x, y).mse == pytest.approx(expected, rel=1e-6)
    assert compare(x, y).mse != pytest.approx(expected, rel=1e-12), "float32 is what the official code uses"


def test_the_ious_count_pixels() -> None:
    x, y = random_take(0), random_take(1)
    per_frame = []
    for one, two in zip(x.masks, y.masks, strict=True):
        pairs = list(zip(one.flat, two.flat, strict=True))
        per_frame.append(sum(a and b for a, b in pairs) / sum(a or b for a, b in pairs))
    anywhere, smaller, larger, pixels = [0, 0], 0.0, 0.0, 0
    for row in range(4):
        for column in range(5):
            a = sum(bool(mask[row, column]) for mask in x.masks)
            b = sum(bool(mask[row, column]) for mask in y.masks)
            anywhere = [anywhere[0] + (a > 0 and b > 0), anywhere[1] + (a > 0 or b > 0)]
            smaller, larger, pixels = smaller + min(a, b) / 3, larger + max(a, b) / 3, pixels + 1
    found = compare(x, y)
    assert found.spatiotemporal_iou == pytest.approx(per_frame, abs=1e-12)
    assert found.spatial_iou == pytest.approx(anywhere[0] / anywhere[1], abs=1e-12)
    assert found.weighted_spatial_iou == pytest.approx(smaller / larger, abs=1e-12)
    # NumPy's own floats print as "np.float64(0.5)", which is no number in a table.
    assert {type(value) for value in (found.spatial_iou, found.weighted_spatial_iou, *found.spatiotemporal_iou)} == {
        float
    }
    assert len({round(value, 6) for value in (found.spatial_iou, found.weighted_spatial_iou, *per_frame)}) == 5


def test_where_nothing_moves_in_either_the_overlap_is_whole() -> None:
    still, moving = Take(random_take(0).pictures, NOTHING), random_take(1)
    same = compare(still, still)
    assert (same.spatiotemporal_iou, same.spatial_iou, same.weighted_spatial_iou) == ((1, 1, 1), 1, 1)
    other = compare(still, moving)
    assert (other.spatiotemporal_iou, other.spatial_iou, other.weighted_spatial_iou) == ((0, 0, 0), 0, 0)


def test_a_take_compared_with_itself() -> None:
    take = random_take(0)
    assert compare(take, take) == Comparison((0.0,) * 3, (1.0,) * 3, 1.0, 1.0)


def test_takes_of_different_size_are_refused() -> None:
    with pytest.raises(ValueError, match="one size and length"):
        compare(random_take(0), random_take(0, shape=(2, 4, 5)))


def test_the_three_comparisons_of_a_view() -> None:
    generated, take_1, take_2 = (random_take(seed) for seed in range(3))
    found = compare_view(generated, take_1, take_2)
    assert found.first == compare(generated, take_1)
    assert found.second == compare(generated, take_2)
    assert found.variance == compare(take_1, take_2)


# Two views with figures that differ, so that a mean of ratios is not a ratio of means.
RESULTS = [
    result(comparison(0.03, 0.2, 0.4, 0.3), comparison(0.01, 0.5, 0.8, 0.6)),
    result(comparison(0.01, 0.6, 0.5, 0.5), comparison(0.02, 0.7, 0.6, 0.9)),
]


def test_the_original_score_is_a_ratio_of_means() -> None:
    overlap = (0.4 / 0.6 + 0.45 / 0.7 + 0.4 / 0.75) / 3
    assert original_score(RESULTS) == round(100 * (overlap - (0.02 - 0.015)), 2) == 60.93
    found = set_score(RESULTS)
    assert found.means == pytest.approx(
        {"spatiotemporal_iou": 0.4, "spatial_iou": 0.45, "weighted_spatial_iou": 0.4, "mse": 0.02}
    )
    assert found.variances == pytest.approx(
        {"spatiotemporal_iou": 0.6, "spatial_iou": 0.7, "weighted_spatial_iou": 0.75, "mse": 0.015}
    )
    assert found.original == found.raw == pytest.approx(overlap - 0.005, abs=1e-12)


def test_the_original_score_is_clipped() -> None:
    perfect = result(comparison(0, 1, 1, 1), comparison(0.01, 0.5, 0.5, 0.5))
    hopeless = result(comparison(0.9, 0, 0, 0), comparison(0.01, 0.5, 0.5, 0.5))
    assert (original_score([perfect]), original_score([hopeless])) == (100, 0)
    assert set_score([perfect]).raw == pytest.approx(2.01) and set_score([perfect]).original == 1
    assert set_score([hopeless]).raw == pytest.approx(-0.89) and set_score([hopeless]).original == 0


def test_entries_of_lists_are_rounded_before_their_mean_and_nothing_else_is() -> None:
    first = Comparison((0.00004, 0.00014), (0.30004, 0.40004), 0.300049, 0.300049)
    variance = Comparison((0.02004, 0.02014), (0.50004, 0.60004), 0.6000449, 0.7000449)
    found = set_score([ViewResult(first, first, variance)])
    assert found.means == pytest.approx(
        {"mse": 0.00005, "spatiotemporal_iou": 0.35, "spatial_iou": 0.300049, "weighted_spatial_iou": 0.300049},
        abs=1e-15,
    )
    assert found.variances == pytest.approx(
        {"mse": 0.02005, "spatiotemporal_iou": 0.55, "spatial_iou": 0.6000449, "weighted_spatial_iou": 0.7000449},
        abs=1e-15,
    )
    # Not 0.0002, to which NumPy rounds it.
    assert Comparison((0.00025,), (1.0,), 1.0, 1.0).mean("mse") == 0.0003


def test_the_original_score_rounds_variances_and_itself() -> None:
    first = Comparison((0.0,), (0.45,), 0.2, 0.2)
    # Spatial to five decimals, weighted spatial to four.
    variance = Comparison((0.0,), (0.5,), 0.2400449, 0.2400449)
    found = original_score([ViewResult(first, first, variance)])
    assert found == round(100 * (0.45 / 0.5 + 0.2 / 0.24004 + 0.2 / 0.24) / 3, 2) == 85.55
    # Nothing but the first rounding: 100 * (0.9 + 2 * 0.2 / 0.2400449) / 3 = 85.5452, and of 0.2401: 85.53.
    assert set_score([ViewResult(first, first, variance)]).original == pytest.approx(0.855452, abs=1e-6)


def test_the_original_score_needs_real_takes_that_overlap() -> None:
    with pytest.raises(ValueError, match=r"overlap nowhere.*mean spatial_iou 0"):
        original_score([result(comparison(0, 0, 0, 0), comparison(0.1, 0, 0, 0))])
    with pytest.raises(ValueError, match="no compared videos"):
        original_score([])
    # What is there vanishes when it is rounded.
    with pytest.raises(ValueError, match=r"overlap nowhere.*mean spatial_iou 0"):
        original_score([result(comparison(0, 1, 1, 1), Comparison((0.1,), (0.5,), 0.000001, 0.5))])


def test_the_verified_score_is_a_mean_of_clipped_ratios() -> None:
    components = verified_components(RESULTS[0])
    assert components == pytest.approx(
        {"spatiotemporal_iou": 0.4, "spatial_iou": 0.5, "weighted_spatial_iou": 0.5, "mse": 1 / 3}, rel=1e-5
    )
    # In the second view the error is below the physical variance: 1 and not 2.
    second = (0.6 / 0.7 + 0.5 / 0.6 + 0.5 / 0.9 + 1) / 4
    found = verified_score(RESULTS)
    assert found.score == pytest.approx(((0.4 + 0.5 + 0.5 + 1 / 3) / 4 + second) / 2, rel=1e-5)
    assert found.components["mse"] == pytest.approx((1 / 3 + 1) / 2, rel=1e-5)


def test_the_verified_score_rounds_entries_of_lists() -> None:
    # Rounded, the error is the physical variance; exactly, it is more than twice as large.
    first = Comparison((0.00014, 0.00014), (0.30004, 0.30004), 0.4, 0.4)
    variance = Comparison((0.00006, 0.00006), (0.60006, 0.60006), 0.8, 0.8)
    found = verified_score([ViewResult(first, first, variance)])
    assert found.components["mse"] == 1
    assert found.components["spatiotemporal_iou"] == pytest.approx(0.3 / 0.6001, rel=1e-7)
    assert found.score == pytest.approx((0.3 / 0.6001 + 0.5 + 0.5 + 1) / 4, rel=1e-7)


def test_the_verified_score_where_something_is_nothing() -> None:
    perfect = result(comparison(0, 1, 1, 1), comparison(0, 1, 1, 1))
    assert verified_score([perfect]).score == pytest.approx(1, abs=1e-7)
    nowhere = result(comparison(0.5, 0, 0, 0), comparison(0, 0, 0, 0))
    assert verified_score([nowhere]).score == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="no compared videos"):
        verified_score([])
