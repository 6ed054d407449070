"""Repeated measurements of one thing, as a median and what most of them lie between."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds of one call, over repetitions.

    Attributes:
        median_s: what a cost model takes.
        low_s: tenth percentile.
        high_s: ninetieth percentile.
        num_repetitions: how many there were.
    """

    median_s: float
    low_s: float
    high_s: float
    num_repetitions: int

    @property
    def width(self) -> float:
        """(high - low) / median: 0.1 is a quiet machine, 1 a busy one."""
        return (self.high_s - self.low_s) / self.median_s if self.median_s else 0.0


def spread_of(seconds: Sequence[float]) -> Spread:
    """Median and 10% to 90% range, each by linear interpolation between the values."""
    assert seconds, "nothing was measured"
    ordered = sorted(seconds)
    return Spread(_quantile(ordered, 0.5), _quantile(ordered, 0.1), _quantile(ordered, 0.9), len(ordered))


def _quantile(ordered: Sequence[float], fraction: float) -> float:
    position = fraction * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def scaled(spread: Spread, factor: float) -> Spread:
    """So many times each."""
    return Spread(
        spread.median_s * factor, spread.low_s * factor, spread.high_s * factor, spread.num_repetitions
    )


def median_of(spreads: Sequence[Spread]) -> Spread:
    """The median of the medians, between the outermost ends."""
    return Spread(
        statistics.median(s.median_s for s in spreads),
        min(s.low_s for s in spreads),
        max(s.high_s for s in spreads),
        sum(s.num_repetitions for s in spreads),
    )


def mean_of(spreads: Sequence[Spread]) -> Spread:
    """Means of medians and of both ends."""
    count = len(spreads)
    return Spread(
        sum(s.median_s for s in spreads) / count,
        sum(s.low_s for s in spreads) / count,
        sum(s.high_s for s in spreads) / count,
        spreads[0].num_repetitions,
    )
