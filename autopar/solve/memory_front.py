"""Pareto fronts of (resident bytes, seconds) of a segment, carried from block to block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_LARGEST = 20_000
_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True, slots=True)
class MemoryFront:
    """Pareto front of (resident bytes, seconds) for one pair of words, memory ascending, seconds
    descending."""

    resident_bytes: NDArray[np.int64]
    seconds: NDArray[np.float64]
    option: NDArray[np.int32]
    word: NDArray[np.int32]
    label: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ways:
    """Options of a block between the same two words; columns of bytes and seconds.

    Attributes:
        word: index of the input word.
        option: indices.
    """

    word: int
    resident_bytes: NDArray[np.int64]
    seconds: NDArray[np.float64]
    option: NDArray[np.int32]


def one_block_more(
    parts: Sequence[tuple[MemoryFront, Ways]], discount_bytes: int, discount_s: float, budget_bytes: int
) -> tuple[MemoryFront | None, bool]:
    """The front of all ways to go on from fronts.

    Args:
        parts: fronts, and the options that begin with the word in which they end.
        discount_bytes: what the new block need not hold, since another block of the segment holds it.
        discount_s: likewise, time.
        budget_bytes: most that may be resident.

    Returns:
        None where nothing fits; and whether the front is whole.
    """
    resident = _joined([(f.resident_bytes + (w.resident_bytes - discount_bytes)).ravel() for f, w in parts])
    (within,) = np.nonzero(resident <= budget_bytes)
    if not len(within):
        return None, True
    seconds = _joined([(f.seconds + (w.seconds - discount_s)).ravel() for f, w in parts])
    order = within[np.lexsort((seconds[within], resident[within]))]
    ordered = seconds[order]
    better = np.empty(len(order), bool)
    better[0] = True
    better[1:] = ordered[1:] < np.minimum.accumulate(ordered)[:-1]
    keep = order[better]
    whole = True
    if len(keep) > _LARGEST:
        whole = False
        keep = keep[np.unique(np.linspace(0, len(keep) - 1, _LARGEST).astype(np.int64))]
    # Every part stands in a row: its first option with all points of its front, its second with all, ...
    sizes = np.array([len(front.seconds) for front, _ in parts])
    starts = np.cumsum([0, *(len(front.seconds) * len(ways.option) for front, ways in parts[:-1])])
    part = np.searchsorted(starts, keep, side="right") - 1
    number, label = np.divmod(keep - starts[part], sizes[part])
    first_options = np.cumsum([0, *(len(ways.option) for _, ways in parts[:-1])])
    option = _joined([ways.option for _, ways in parts])[first_options[part] + number]
    word = np.array([ways.word for _, ways in parts], np.int32)[part]
    front = MemoryFront(resident[keep], seconds[keep], option, word, label)
    return front, whole


EMPTY = MemoryFront(
    np.zeros(1, np.int64), np.zeros(1), np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros(1, np.int64)
)


def _joined(arrays: list[NDArray[_T]]) -> NDArray[_T]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
