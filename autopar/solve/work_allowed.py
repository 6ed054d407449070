"""How much a search may do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from autopar.solve.floors import Floors

MOST_UNITS = 5_000
"""Of a whole search. Units of work: a block in a stage of a solve, and those it may be in one segment with;
making tables."""


class WorkAllowed:
    """What is left of the work of one search.

    Args:
        floors: what is worked on them while this search is at work counts, too; None: only what it solves.
        units: in all.
    """

    def __init__(self, floors: Floors | None, units: int = MOST_UNITS) -> None:
        self._floors = floors
        self._units = units + self._of_floors

    @property
    def units_left(self) -> int:
        """Of those allowed."""
        return self._units - self._of_floors

    @property
    def left(self) -> float:
        """Share of what a whole search is allowed."""
        return self.units_left / MOST_UNITS

    def spend(self, units: int) -> None:
        """Work that was done."""
        self._units -= units

    def allow(self, units: int) -> None:
        """More work."""
        self._units += units

    @contextmanager
    def beyond(self) -> Iterator[None]:
        """What is done inside leaves no less work for what comes after it."""
        before = self.units_left
        yield
        self._units = before + self._of_floors

    @property
    def _of_floors(self) -> int:
        return self._floors.units if self._floors else 0
