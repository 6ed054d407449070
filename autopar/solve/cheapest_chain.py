"""The cheapest options of all blocks of a chain in which each block takes what the one before hands over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

# Options up to a block, last first: (those before, the last).
Way: TypeAlias = "tuple[Way, int] | None"
# By input and output word of a kind of blocks: the least cost, and which option has it.
Steps: TypeAlias = Mapping[tuple[str, str], tuple[float, int]]

_FIRST_WORD = "replicate"


def least_by_words(options: Iterable[tuple[int, tuple[str, str], float]]) -> Steps:
    """The cheapest of options, given as (index, words, cost); of equal ones the first."""
    least: dict[tuple[str, str], tuple[float, int]] = {}
    for index, words, cost in options:
        if words not in least or cost < least[words][0]:
            least[words] = cost, index
    return least


def cheapest_chains(kinds: Sequence[Steps], blocks: Sequence[int]) -> dict[str, tuple[float, Way]]:
    """By the word in which a chain ends: its least cost and its options.

    Args:
        blocks: the kind of every block.
    """
    reached: dict[str, tuple[float, Way]] = {_FIRST_WORD: (0.0, None)}
    for kind in blocks:
        after: dict[str, tuple[float, Way]] = {}
        for (before, word), (cost, index) in kinds[kind].items():
            if before not in reached:
                continue
            total = reached[before][0] + cost
            if word not in after or total < after[word][0]:
                after[word] = total, (reached[before][1], index)
        reached = after
    return reached


def unwound(way: Way) -> tuple[int, ...]:
    """The options of a way, first first."""
    options: list[int] = []
    while way is not None:
        way, option = way
        options.append(option)
    return tuple(reversed(options))
