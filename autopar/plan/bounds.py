"""Bounds on numbers that are left to the planner: ``mesh: {tensor: "<=4"}``, ``zero: 1-2``.

Written in place of the number, a bound is law as a number is. Only a plan that leaves something open can hold
one: what ``plan`` writes says the number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PATTERN = r"(<= ?\d{1,9}|>= ?\d{1,9}|\d{1,9} ?- ?\d{1,9})"
"""How a bound is written."""

_BOUND = re.compile(
    r"\s*(?:<=\s*(?P<most>\d{1,9})|>=\s*(?P<least>\d{1,9})|(?P<a>\d{1,9})\s*-\s*(?P<b>\d{1,9}))\s*"
)


@dataclass(frozen=True, slots=True)
class Bound:
    """The least and the most that a number may be.

    Attributes:
        most: None: anything.
    """

    least: int = 0
    most: int | None = None

    def holds(self, number: int) -> bool:
        """Whether a number lies within."""
        return self.least <= number and (self.most is None or number <= self.most)

    def meet(self, other: Bound) -> Bound | None:
        """What lies within both; None where nothing does."""
        least = max(self.least, other.least)
        most = min((most for most in (self.most, other.most) if most is not None), default=None)
        return None if most is not None and most < least else Bound(least, most)

    def __str__(self) -> str:
        """As it is written in a plan."""
        if self.most is None:
            return f">={self.least}"
        return f"{self.least}-{self.most}" if self.least else f"<={self.most}"


def parse_bound(text: str) -> Bound | None:
    """The bound that a text says: ``<=4``, ``>=2``, ``2-8`` (both included); None where it is none.

    Raises:
        ValueError: it is one that nothing meets.
    """
    found = _BOUND.fullmatch(text)
    if found is None:
        return None
    if found["most"]:
        return Bound(0, int(found["most"]))
    if found["least"]:
        return Bound(int(found["least"]))
    least, most = int(found["a"]), int(found["b"])
    if most < least:
        raise ValueError(f"the bound '{text.strip()}' runs backwards; write the smaller number first")
    return Bound(least, most)


@dataclass(frozen=True, slots=True)
class StageSize:
    """How many blocks some stages may hold.

    Attributes:
        stages: ``0``, ``0-3``, ``last``, or ``*`` for every stage.
        bound: every line that names a stage holds for it.
    """

    stages: str
    bound: Bound

    def names(self, stage: int, num_stages: int) -> bool:
        """Whether the line is about a stage of so many."""
        if self.stages in ("*", "last"):
            return self.stages == "*" or stage == num_stages - 1
        first, last = self._range()
        return first <= stage <= last

    def names_some_of(self, other: StageSize) -> str:
        """A stage that two lines are both about, however many there are; empty where there is none."""
        if "*" in (self.stages, other.stages) or self.stages == other.stages:
            return other.stages if self.stages == "*" else self.stages
        if "last" in (self.stages, other.stages):
            return ""
        (a, b), (c, d) = self._range(), other._range()
        return str(max(a, c)) if max(a, c) <= min(b, d) else ""

    def _range(self) -> tuple[int, int]:
        first, _, last = self.stages.partition("-")
        return int(first), int(last or first)


def size_of_stage(sizes: tuple[StageSize, ...], stage: int, num_stages: int) -> Bound | None:
    """What all lines together leave to a stage; None: nothing."""
    left: Bound | None = Bound(1)
    for size in sizes:
        if left is not None and size.names(stage, num_stages):
            left = left.meet(size.bound)
    return left


def stages_can_hold(sizes: tuple[StageSize, ...], num_stages: int, num_blocks: int) -> bool:
    """Whether so many blocks can be cut into so many stages of the sizes allowed."""
    if not sizes:
        return num_stages <= num_blocks
    least = most = 0
    for stage in range(num_stages):
        bound = size_of_stage(sizes, stage, num_stages)
        if bound is None:
            return False
        least += bound.least
        most += num_blocks if bound.most is None else bound.most
    return least <= num_blocks <= most
