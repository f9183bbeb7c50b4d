"""The two Physics-IQ scores of a set of generated videos (docs/scores.md, "Physics-IQ").

Every generated video is compared with two real takes of the same scenario, seen from the same side. How far the two
takes differ from each other, the physical variance, is the measure of what can be reached.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Added to denominators of the Verified score.
EPSILON = 1e-8
# Both official tools round the entries of lists when they read their table, the older one its means and result, too.
LIST_DECIMALS = 4
VARIANCE_DECIMALS = {"spatiotemporal_iou": 4, "spatial_iou": 5, "weighted_spatial_iou": 4, "mse": 4}
RESULT_DECIMALS = 2
IOUS = ("spatiotemporal_iou", "spatial_iou", "weighted_spatial_iou")
METRICS = (*IOUS, "mse")


@dataclass(frozen=True)
class Take:
    """A video as it is compared: ``pictures`` (T, h, w, 3) uint8 RGB and ``masks`` (T, h, w) bool, where it moves."""

    pictures: np.ndarray
    masks: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """Two takes: one value per frame of ``mse`` and ``spatiotemporal_iou``, one for the video of the others."""

    mse: tuple[float, ...]
    spatiotemporal_iou: tuple[float, ...]
    spatial_iou: float
    weighted_spatial_iou: float

    def mean(self, metric: str) -> float:
        """Mean over the frames, of entries rounded to four decimals; what has no frames is taken as it is."""
        value = getattr(self, metric)
        # Python rounds the exact value, NumPy one that it has multiplied by 10000.
        return _mean([round(entry, LIST_DECIMALS) for entry in value]) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class ViewResult:
    """One scenario seen from one side: the generated video against take 1 and take 2, and take 1 against take 2."""

    first: Comparison
    second: Comparison
    variance: Comparison


@dataclass(frozen=True)
class SetScore:
    """The Original score and what it consists of, all over the whole set, as fractions: 1 is as near as reality.

    ``means`` are those of the generated videos and ``variances`` those of the real takes; of ``parts``, an IoU is the
    first over the second, and MSE their difference, of which less is better.
    """

    means: dict[str, float]
    variances: dict[str, float]

    @property
    def parts(self) -> dict[str, float]:
        overlaps = {metric: self.means[metric] / self.variances[metric] for metric in IOUS}
        return {**overlaps, "mse": self.means["mse"] - self.variances["mse"]}

    @property
    def raw(self) -> float:
        """Not clipped."""
        return _combine(self.parts)

    @property
    def original(self) -> float:
        return _clip(self.raw)

    @property
    def stable(self) -> float:
        """Each part is clipped before they are put together."""
        return _clip(_combine({metric: _clip(part) for metric, part in self.parts.items()}))


@dataclass(frozen=True)
class VerifiedScore:
    """The score and the mean of each of its four components, as fractions."""

    score: float
    components: dict[str, float]


def intersection_over_union(x: np.ndarray, y: np.ndarray) -> float:
    """Of two boolean arrays of the same shape; 1 where both are empty."""
    # Of NumPy's integers the quotient would be one of its floats, which prints as "np.float64(0.5)".
    union = int(np.count_nonzero(x | y))
    return int(np.count_nonzero(x & y)) / union if union else 1.0


def weighted_spatial_iou(x: np.ndarray, y: np.ndarray) -> float:
    """Of two boolean masks (T, h, w): overlap of the shares of time in which each pixel moves; 1 where none does."""
    x_share, y_share = x.mean(axis=0), y.mean(axis=0)
    largest = np.maximum(x_share, y_share).sum()
    return float(np.minimum(x_share, y_share).sum() / largest) if largest else 1.0


def mean_squared_errors(x: np.ndarray, y: np.ndarray) -> tuple[float, ...]:
    """Per frame of two videos (T, h, w, 3) uint8, over pixels and channels, of values in 0..1, in float32."""
    unit = np.float32(255)
    return tuple(
        float(np.mean(np.square(one.astype(np.float32) / unit - two.astype(np.float32) / unit)))
        for one, two in zip(x, y, strict=True)
    )


def compare(x: Take, y: Take) -> Comparison:
    """All four metrics of two takes of one size and length; ValueError for others."""
    if x.pictures.shape != y.pictures.shape or x.masks.shape != y.masks.shape:
        raise ValueError(
            f"only videos of one size and length can be compared, got pictures {x.pictures.shape} and "
            f"{y.pictures.shape}, masks {x.masks.shape} and {y.masks.shape}"
        )
    return Comparison(
        mse=mean_squared_errors(x.pictures, y.pictures),
        spatiotemporal_iou=tuple(intersection_over_union(one, two) for one, two in zip(x.masks, y.masks, strict=True)),
        spatial_iou=intersection_over_union(x.masks.any(axis=0), y.masks.any(axis=0)),
        weighted_spatial_iou=weighted_spatial_iou(x.masks, y.masks),
    )


def compare_view(generated: Take, take_1: Take, take_2: Take) -> ViewResult:
    """A generated video and both real takes of its scenario and side."""
    return ViewResult(compare(generated, take_1), compare(generated, take_2), compare(take_1, take_2))


def set_score(results: Sequence[ViewResult]) -> SetScore:
    """Means over all views, and what follows from them: ratios of means, not a mean of ratios.

    ValueError for no results, and where the real takes of all views overlap nowhere, so that there is nothing to divide
    by.
    """
    _need_some(results)
    means, variances = (
        {metric: _mean([getattr(result, which).mean(metric) for result in results]) for metric in METRICS}
        for which in ("first", "variance")
    )
    _need_overlap(variances)
    return SetScore(means, variances)


def original_score(results: Sequence[ViewResult]) -> float:
    """The score of the original benchmark in percent, with all the rounding of its code; ValueError as above."""
    exact = set_score(results)
    variances = {metric: _round(value, VARIANCE_DECIMALS[metric]) for metric, value in exact.variances.items()}
    _need_overlap(variances)
    return _round(100 * SetScore(exact.means, variances).original, RESULT_DECIMALS)


def verified_components(result: ViewResult) -> dict[str, float]:
    """The four components of the Verified score of one view, each in 0..1: how near to the physical variance it is."""
    components = {
        metric: _clip(result.first.mean(metric) / (result.variance.mean(metric) + EPSILON)) for metric in IOUS
    }
    excess = result.first.mean("mse") / (result.variance.mean("mse") + EPSILON)
    components["mse"] = 1.0 / excess if excess > 1 else 1.0
    return components


def verified_score(results: Sequence[ViewResult]) -> VerifiedScore:
    """The score of Physics-IQ Verified: every view's four components, clipped, then the mean. ValueError for none."""
    _need_some(results)
    views = [verified_components(result) for result in results]
    components = {metric: _mean([view[metric] for view in views]) for metric in METRICS}
    return VerifiedScore(_mean([_mean(list(view.values())) for view in views]), components)


def _need_some(results: Sequence[ViewResult]) -> None:
    if not results:
        raise ValueError("no compared videos to score")


def _need_overlap(variances: dict[str, float]) -> None:
    if not all(variances[metric] for metric in IOUS):
        raise ValueError(
            "the two real takes overlap nowhere, so that the Original Physics-IQ score is not defined: "
            + ", ".join(f"mean {metric} {variances[metric]:g}" for metric in IOUS)
        )


def _combine(parts: dict[str, float]) -> float:
    return sum(parts[metric] for metric in IOUS) / len(IOUS) - parts["mse"]


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _round(value: float, decimals: int) -> float:
    """As NumPy does it, which the official code uses for means."""
    return float(np.round(np.float64(value), decimals))
