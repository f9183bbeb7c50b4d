"""What the methods are asked to reach, and whether they do (docs/compare.md, "Goals"). Pure functions of the table."""

import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.compare.summary import Summary

Cost = Literal["computed", "flop"]


class _Goal(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    text: str
    groups: Annotated[list[str], Field(min_length=1, description="ours: the goal is about their methods")]

    @property
    def groups_named(self) -> list[str]:
        return self.groups


class Reach(_Goal):
    """One of ours has at least `psnr` dB with at most the share `computed` of the chunk-forwards."""

    kind: Literal["reach"]
    computed: float
    psnr: float


class Margin(_Goal):
    """Each of ours is at least `by` dB above the line through the rivals' points, at equal cost."""

    kind: Literal["margin"]
    rival: str
    by: float
    cost: Cost = "flop"
    most: float = Field(1.0, description="only methods of ours with at most this share of the cost")

    @property
    def groups_named(self) -> list[str]:
        return [*self.groups, self.rival]


class Dominates(_Goal):
    """Every rival is beaten in PSNR by one of ours that costs no more."""

    kind: Literal["dominates"]
    rival: str
    cost: Cost = "flop"

    @property
    def groups_named(self) -> list[str]:
        return [*self.groups, self.rival]


class Quality(_Goal):
    """The task quality of each of ours is not below the uncached one's by more than its error bar."""

    kind: Literal["quality"]


Goal = Annotated[Reach | Margin | Dominates | Quality, Field(discriminator="kind")]


class Outcome(BaseModel):
    """`met` is None where the methods at hand cannot tell; `found` says what was found, with its numbers."""

    text: str
    met: bool | None
    found: str


def judge(goal: Goal, table: Sequence[Summary]) -> Outcome:
    ours = [row for row in table if row.group in goal.groups]
    if isinstance(goal, Quality):
        return _outcome(goal, *_quality(ours))
    ours = [row for row in ours if row.psnr is not None]
    if isinstance(goal, Reach):
        return _outcome(goal, *_reach(goal, ours))
    rivals = [row for row in table if row.group == goal.rival and row.psnr is not None]
    return _outcome(goal, *(_margin if isinstance(goal, Margin) else _dominates)(goal, ours, rivals))


def _outcome(goal: Goal, met: bool | None, found: str) -> Outcome:
    return Outcome(text=goal.text, met=met, found=found)


def share(row: Summary, cost: Cost) -> float:
    return row.computed_share if cost == "computed" else row.flop_share


def _shown(row: Summary, cost: Cost) -> str:
    return f"{row.name} ({share(row, cost):.1%}, {_psnr(row):.1f} dB)"


def _psnr(row: Summary) -> float:
    assert row.psnr is not None
    return row.psnr.mean


def _reach(goal: Reach, ours: Sequence[Summary]) -> tuple[bool | None, str]:
    cheap = [row for row in ours if row.computed_share <= goal.computed]
    if not cheap:
        return None, f"no method computes at most {goal.computed:.0%}"
    best = max(cheap, key=_psnr)
    return _psnr(best) >= goal.psnr, f"best: {_shown(best, 'computed')}"


def _margin(goal: Margin, ours: Sequence[Summary], rivals: Sequence[Summary]) -> tuple[bool | None, str]:
    line = sorted((share(row, goal.cost), _psnr(row)) for row in rivals)
    margins = []
    for row in ours:
        place = share(row, goal.cost)
        rival = interpolate(line, place) if place <= goal.most else None
        if rival is not None:
            margins.append((_psnr(row) - rival, row, rival))
    if not margins:
        return None, f"no method of ours costs as much as one of {goal.rival}"
    least, row, rival = min(margins, key=lambda found: found[0])
    reached = sum(margin >= goal.by for margin, _, _ in margins)
    found = f"smallest: {least:+.1f} dB, {_shown(row, goal.cost)} against {rival:.1f} dB"
    return least >= goal.by, f"{reached} of {len(margins)} reach it; {found}"


def _dominates(goal: Dominates, ours: Sequence[Summary], rivals: Sequence[Summary]) -> tuple[bool | None, str]:
    if not rivals or not ours:
        return None, "nothing to compare"
    margins = []
    for rival in rivals:
        cheap = [row for row in ours if share(row, goal.cost) <= share(rival, goal.cost)]
        if not cheap:
            return False, f"none of ours costs as little as {_shown(rival, goal.cost)}"
        best = max(cheap, key=_psnr)
        margins.append((_psnr(best) - _psnr(rival), best, rival))
    least, best, rival = min(margins, key=lambda found: found[0])
    return least > 0, (
        f"smallest of {len(margins)}: {least:+.1f} dB, {_shown(best, goal.cost)} against {_shown(rival, goal.cost)}"
    )


def _quality(ours: Sequence[Summary]) -> tuple[bool | None, str]:
    """Paired: of the videos that differ in being right, are significantly more wrong than newly right?"""
    judged = [row for row in ours if row.quality is not None]
    if not judged:
        return None, "task quality was not measured"
    worst = max(judged, key=lambda row: row.lost - row.gained)
    # Under "no difference" each change goes either way; two standard deviations of their sum.
    met = all(row.lost - row.gained <= 2 * math.sqrt(row.lost + row.gained) for row in judged)
    return met, (f"worst: {worst.name}, {worst.lost} of {worst.samples} videos became wrong and {worst.gained} right")


def interpolate(line: Sequence[tuple[float, float]], place: float) -> float | None:
    """PSNR at a share of the cost, linear in the logarithm of the share; None outside of the ascending ``line``."""
    for (left, low), (right, high) in itertools.pairwise(line):
        if left <= place <= right:
            if left == right:
                return max(low, high)
            return low + (high - low) * math.log(place / left) / math.log(right / left)
    return None
