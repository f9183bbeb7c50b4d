"""From the results of single videos to a row per method (docs/compare.md, "The table"). Pure functions."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from metrics.tail import low_end

# Of the normal distribution: 95 % lie within so many standard deviations.
_DEVIATIONS = 1.96


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Work(_Record):
    """What making a video took. `computed`, `reused`: chunk-forwards of the window; `flop` counts all forwards."""

    seconds: float  # of denoising
    total_seconds: float  # with text encoder and autoencoder
    flop: int
    computed: int
    reused: int
    kv_cache_bytes: int


class Likeness(_Record):
    """Similarity to the reference; PSNR is None where the videos are identical, LPIPS where there is no network."""

    identical: bool
    psnr: float | None
    psnr_frame_mean: float | None
    ssim: float
    lpips: float | None


class Result(_Record):
    """One video. `reference` is the work of the reference's video, made in the same process."""

    method: str
    sample: str
    prompt: str
    work: Work
    digest: str  # of the frames
    reference: Work | None
    reference_digest: str | None
    likeness: Likeness | None
    quality: dict[str, bool] | None
    reuse_map: list[str]  # a string a chunk, a character a step: 0 computed, 1 reused, - not in the window
    session: str
    commit: str | None


class Spread(_Record):
    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median=statistics.median(values), min=min(values), max=max(values))


class Mean(_Record):
    """`std` is the sample's standard deviation; None of a single value. `low_end`: the 5th percentile."""

    mean: float
    std: float | None
    low_end: float
    min: float
    max: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean | None":
        if not values:
            return None
        std = statistics.stdev(values) if len(values) > 1 else None
        ends = {"low_end": low_end(values), "min": min(values), "max": max(values)}
        return cls(mean=statistics.fmean(values), std=std, count=len(values), **ends)


class Share(_Record):
    """`right` of `count`, and the 95 % interval of their share (Wilson's)."""

    right: int
    count: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.right / self.count

    @classmethod
    def of(cls, values: Sequence[bool]) -> "Share":
        low, high = wilson(sum(values), len(values))
        return cls(right=sum(values), count=len(values), low=low, high=high)


class Summary(_Record):
    """A method over all samples.

    `speedup`: the reference's seconds of denoising over its own, pair by pair. `computed_share`, `flop_share`: of what
    the reference computes. `psnr`, `ssim`, `lpips`: over the videos that are not `identical` to the reference.
    `quality`: by attribute, and "all" of them; `lost` and `gained` videos are those where the reference is all right
    and this is not, and the other way round.
    """

    name: str
    group: str
    reference: str | None
    samples: int
    seconds: float
    total_seconds: float
    speedup: Spread | None
    flop: float
    flop_share: float
    computed_share: float
    kv_cache_bytes: int
    kv_share: float
    identical: int
    psnr: Mean | None
    ssim: Mean | None
    lpips: Mean | None
    quality: dict[str, Share] | None
    lost: int
    gained: int

    @property
    def flop_ratio(self) -> float:
        return 1 / self.flop_share


def summarise(
    name: str, group: str, reference: str | None, results: Sequence[Result], originals: Mapping[str, Result]
) -> Summary:
    """The row of a method.

    Args:
        results: one per sample, at least one.
        originals: the reference's results by sample; empty for a reference itself.
    """
    pairs = [(result.reference or result.work, result.work) for result in results]
    likeness = [result.likeness for result in results if result.likeness is not None]
    differing = [one for one in likeness if not one.identical]
    lost, gained = changed(results, originals)
    return Summary(
        name=name,
        group=group,
        reference=reference,
        samples=len(results),
        seconds=statistics.median(work.seconds for _, work in pairs),
        total_seconds=statistics.median(work.total_seconds for _, work in pairs),
        speedup=None if reference is None else Spread.of([whole.seconds / own.seconds for whole, own in pairs]),
        flop=statistics.fmean(work.flop for _, work in pairs),
        flop_share=_share_of((own.flop, whole.flop) for whole, own in pairs),
        computed_share=_share_of((own.computed, whole.computed) for whole, own in pairs),
        kv_cache_bytes=max(work.kv_cache_bytes for _, work in pairs),
        kv_share=_share_of((own.kv_cache_bytes, whole.kv_cache_bytes) for whole, own in pairs),
        identical=len(likeness) - len(differing),
        psnr=Mean.of([one.psnr for one in differing if one.psnr is not None]),
        ssim=Mean.of([one.ssim for one in differing]),
        lpips=Mean.of([one.lpips for one in differing if one.lpips is not None]),
        quality=_quality(results),
        lost=lost,
        gained=gained,
    )


def _share_of(pairs: Iterable[tuple[int, int]]) -> float:
    own, whole = zip(*pairs, strict=True)
    return sum(own) / sum(whole)


def _quality(results: Sequence[Result]) -> dict[str, Share] | None:
    judged = [result.quality for result in results if result.quality is not None]
    if not judged:
        return None
    shares = {name: Share.of([quality[name] for quality in judged]) for name in judged[0]}
    return {"all": Share.of([all(quality.values()) for quality in judged]), **shares}


def changed(results: Iterable[Result], originals: Mapping[str, Result]) -> tuple[int, int]:
    """Videos that became wrong and that became right, against the same sample of the reference."""
    lost = gained = 0
    for result in results:
        original = originals.get(result.sample)
        if original is None or original.quality is None or result.quality is None:
            continue
        before, after = all(original.quality.values()), all(result.quality.values())
        lost += before and not after
        gained += after and not before
    return lost, gained


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, sensible at 0 and 1 too (E. B. Wilson, 1927)."""
    share, square = right / count, _DEVIATIONS**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = _DEVIATIONS / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def inconsistencies(results: Sequence[Result]) -> list[str]:
    """Samples with a result whose reference was another video than the one now there: code or library changed."""
    uncached = {(result.sample, result.digest) for result in results if result.reference is None}
    return sorted(
        {
            result.sample
            for result in results
            if result.reference_digest is not None and (result.sample, result.reference_digest) not in uncached
        }
    )
