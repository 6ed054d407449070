"""What the search has in its queue."""

from __future__ import annotations

from dataclasses import dataclass

from autopar.solve.bundle import Bundle
from autopar.solve.candidate import Candidate, Family


@dataclass(slots=True)
class Waiting:
    """In the queue; ``effort`` says how much its bound has cost so far, ``guess_s`` what its step may be."""

    bound_s: float
    guess_s: float
    item: Family | Bundle | Candidate
    effort: int

    def __lt__(self, other: Waiting) -> bool:
        return self.key < other.key

    @property
    def key(self) -> tuple[float, Family, int, tuple[object, ...]]:
        """By promise; then by degrees, from simple to involved; candidates first, families last."""
        item = self.item
        if isinstance(item, Family):
            return self.guess_s, item, 2, ()
        setting: tuple[object, ...] = item.offload, item.virtual
        if isinstance(item, Bundle):
            return self.guess_s, item.family, 1, (*setting, item.schedule, item.members[0])
        return (
            self.guess_s,
            item.family,
            0,
            (*setting, item.zero, item.schedule, item.order, item.shard_group),
        )
