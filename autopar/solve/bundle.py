"""Candidates that are bounded together, because they differ in little that a step pays for."""

from __future__ import annotations

from dataclasses import dataclass, field

from autopar.plan.decisions import ScheduleName
from autopar.solve.candidate import Candidate, Family
from autopar.solve.candidates import Space, candidates


@dataclass(frozen=True, slots=True)
class Bundle:
    """Candidates of one family that run one schedule and offload the same; they differ in ZeRO level, shard
    group and order of the axes."""

    family: Family
    schedule: ScheduleName
    virtual: int
    offload: tuple[str, ...]
    members: tuple[Candidate, ...] = field(compare=False)


def bundles(family: Family, space: Space) -> tuple[Bundle, ...]:
    """All candidates of a family."""
    found: dict[tuple[ScheduleName, int, tuple[str, ...]], list[Candidate]] = {}
    for candidate in candidates(family, space):
        key = candidate.schedule, candidate.virtual, candidate.offload
        found.setdefault(key, []).append(candidate)
    return tuple(Bundle(family, *key, tuple(members)) for key, members in found.items())
