"""What solving a candidate is expected to bring, by what solving others has brought."""

from __future__ import annotations

from collections import Counter
from typing import TypeAlias

from autopar.plan.decisions import ScheduleName
from autopar.solve.candidate import Candidate, Family, Offload

_AGAIN = 0.02

Kind: TypeAlias = tuple[ScheduleName, int, Offload]


class Expected:
    """Of one search; it learns from what is solved."""

    def __init__(self) -> None:
        self._num_solved: Counter[Family] = Counter()
        # How far the plans of a kind were from their bounds, at least.
        self._ratios: dict[Kind, float] = {}

    def step_s(self, candidate: Candidate, bound_s: float) -> float:
        """Of its best plan: the more of a family is solved, the less the rest promises."""
        ratio = self._ratios.get(_kind(candidate), 1.0)
        return bound_s * ratio * (1 + _AGAIN * self._num_solved[candidate.family])

    def begin(self, candidate: Candidate) -> None:
        """One more of its family is solved."""
        self._num_solved[candidate.family] += 1

    def learn(self, candidate: Candidate, step_s: float, bound_s: float) -> None:
        """What was found of a candidate."""
        kind = _kind(candidate)
        self._ratios[kind] = min(self._ratios.get(kind, float("inf")), step_s / bound_s)


def _kind(candidate: Candidate) -> Kind:
    return candidate.schedule, candidate.virtual, candidate.offload
