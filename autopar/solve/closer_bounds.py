"""Closer bounds of whole families before any is opened.

What a family is bounded by at first are tables of the largest micro-batch, of which collectives that do not
grow with the samples take next to nothing. What its ranks must exchange tells more, and so do tables of a
micro-batch in between, which bound all smaller ones.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from autopar.solve.candidate import Family
from autopar.solve.waiting import Waiting

if TYPE_CHECKING:
    from autopar.solve.work_queue import Search

_MOST_TABLES = 12


def come_closer(state: Search) -> None:
    """Raises the least bound of the families that wait, as far as this goes without opening any."""
    _raise_least(state)
    heapq.heapify(state.queue)


def _raise_least(state: Search) -> None:
    """Likewise; the queue is no heap afterwards."""
    tables_left = _MOST_TABLES
    exchanged: set[tuple[Family, int]] = set()  # what was bounded, with how many tables left
    fitting: dict[Family, bool] = {}
    while not state.is_late:
        live = _live(state, fitting)
        least = min(live, key=lambda family: live[family].key, default=None)
        if least is None or (state.work.left <= 0 and live[least].bound_s > _least_of_others(state)):
            return
        if (least, tables_left) not in exchanged:
            exchanged.add((least, tables_left))
            _raise(live[least], state.floors.exchange_s(least, state.worth_s))
            continue
        alike = [family for family in live if family.tensor == least.tensor]
        if not tables_left or not state.floors.come_nearer(least, max(f.micro_batch for f in alike)):
            return
        tables_left -= 1
        for family in alike:
            _raise(live[family], state.floors.scaled(family)[0])


def _least_of_others(state: Search) -> float:
    """The least bound of what families have been opened to: with no work left, that of all there is."""
    others = (w.bound_s for w in state.queue if not isinstance(w.item, Family))
    return min(others, default=float("inf"))


def _live(state: Search, fitting: dict[Family, bool]) -> dict[Family, Waiting]:
    """What may still hold a better plan than the best.

    Args:
        fitting: by family, whether its activations may fit; what is not known yet is added.
    """
    found = {}
    for waiting in state.queue:
        family = waiting.item
        if isinstance(family, Family) and waiting.bound_s < state.worth_s:
            if family not in fitting:
                fitting[family] = state.floors.activations_missing(family) <= 0
            if fitting[family]:
                found[family] = waiting
    return found


def _raise(waiting: Waiting, bound_s: float) -> None:
    waiting.bound_s = max(waiting.bound_s, bound_s)
    waiting.guess_s = max(waiting.guess_s, waiting.bound_s)
