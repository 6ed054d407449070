"""A cut into stages by what is sent between them, where links are slow: early convolutions hand over far more
than late ones, and stages of even times may wait for messages most of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from autopar.plan.bounds import Bound

# Shorter messages, by what a stage of even times takes, change little.
_SHORT = 0.1
# Segments of a chain in stages that are tried, at most.
_MOST_PLACES = 20_000
# Cuts of a part of the chain that are kept: some with a short slowest stage, some with little sent.
_MOST_KEPT = 6

_Cut = tuple[float, float, tuple[int, ...]]


def are_long(firsts: Sequence[int], seconds: Sequence[float], sent_s: Sequence[Sequence[float]]) -> bool:
    """Whether what a cut sends takes long.

    Args:
        firsts: first block of every stage.
        seconds: of every block.
        sent_s: per boundary between stages, of the messages over it after each block.
    """
    sent = (of_block[first - 1] for of_block, first in zip(sent_s, firsts[1:], strict=True))
    return max(sent, default=0.0) > _SHORT * sum(seconds) / len(firsts)


def light_cut(
    seconds: Sequence[float],
    sent_s: Sequence[Sequence[float]],
    num_micro_batches: int,
    sizes: Sequence[Bound] = (),
) -> tuple[int, ...] | None:
    """First blocks of stages through which micro-batches go quickly; None where that is too much work.

    What is made small is what all stages and messages take for one micro-batch and, for every other, what the
    slowest stage takes with what it sends.

    Args:
        seconds: of every block.
        sent_s: per boundary between stages, of the messages over it after each block.
        sizes: of every stage, between what it may hold; empty: anything.
    """
    num_blocks, num_stages = len(seconds), len(sent_s) + 1
    if num_blocks**2 * num_stages > _MOST_PLACES:
        return None
    sizes = sizes or (Bound(1),) * num_stages
    sums = list(accumulate(seconds, initial=0.0))
    ending: dict[int, list[_Cut]] = {0: [(0.0, 0.0, ())]}
    for stage, size in enumerate(sizes):
        last = stage == num_stages - 1
        found: dict[int, list[_Cut]] = {}
        for end in (num_blocks,) if last else range(stage + 1, num_blocks - num_stages + stage + 2):
            after_s = 0.0 if last else sent_s[stage][end - 1]
            cuts = [
                (max(slowest_s, sums[end] - sums[first] + after_s), all_s + after_s, (*firsts, first))
                for first, before in ending.items()
                if first < end and size.holds(end - first)
                for slowest_s, all_s, firsts in before
            ]
            found[end] = _worth_keeping(cuts, num_micro_batches)
        ending = found
    whole = ending.get(num_blocks) or []
    return min(whole, key=lambda cut: _step_s(cut, num_micro_batches))[2] if whole else None


def _step_s(cut: _Cut, num_micro_batches: int) -> tuple[float, _Cut]:
    slowest_s, sent_s, _ = cut
    return (num_micro_batches - 1) * slowest_s + sent_s, cut


def _worth_keeping(cuts: Sequence[_Cut], num_micro_batches: int) -> list[_Cut]:
    """The best of those that no other is better than in both."""
    kept: list[_Cut] = []
    for cut in sorted(cuts):
        if not kept or cut[1] < kept[-1][1]:
            kept.append(cut)
    return sorted(kept, key=lambda cut: _step_s(cut, num_micro_batches))[:_MOST_KEPT]
