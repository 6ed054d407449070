"""How evenly pieces of work can be divided among ranks at best, in whatever order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def least_load(pieces_s: Sequence[float], num_ranks: int) -> float:
    """Lower bound of the slowest rank's work, whichever pieces the ranks take.

    The mean; and of the k * p + 1 largest pieces one rank takes k + 1, at least the smallest of them
    (Dell'Amico & Martello 1995, Operations Research Letters 18, bound L2, unweighted).
    """
    ordered = sorted(pieces_s, reverse=True)
    sums = [0.0, *accumulate(ordered)]
    best = sums[-1] / num_ranks
    for k in range((len(ordered) - 1) // num_ranks + 1):
        last = k * num_ranks + 1
        if last <= len(ordered):
            best = max(best, sums[last] - sums[last - k - 1])
    return best
