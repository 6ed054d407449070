"""Candidates that are bounded together, because they differ in little that a step pays for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from autopar.plan.decisions import ScheduleName
from autopar.solve.candidate import Candidate, Family, Offload
from autopar.solve.candidates import Space, candidates


@dataclass(frozen=True, slots=True)
class Bundle:
    """Candidates of one family that run one schedule with the same tables and offload the same; they differ
    in ZeRO level, shard group and order of the axes."""

    family: Family
    schedule: ScheduleName
    virtual: int
    offload: Offload
    tensor_stride: int
    members: tuple[Candidate, ...] = field(compare=False)

    @property
    def has_its_tables(self) -> bool:
        """Whether the tensor axis is the innermost, as in the tables that a family is bounded by."""
        return self.tensor_stride == 1

    @property
    def nearest(self) -> Candidate | Family:
        """Whose tables bound it: farther apart, the ranks of the tensor axis are no quicker."""
        return self.members[0] if self.has_its_tables and len(self.members) == 1 else self.family

    def parts(self) -> tuple[Bundle, ...]:
        """Its members in smaller bundles: by ZeRO level, then by shard group, then by order."""
        for name in ("zero", "shard_group", "order"):
            parts: dict[object, list[Candidate]] = {}
            for member in self.members:
                parts.setdefault(getattr(member, name), []).append(member)
            if len(parts) > 1:
                return tuple(replace(self, members=tuple(part)) for part in parts.values())
        return (self,)


def bundles(family: Family, space: Space) -> tuple[Bundle, ...]:
    """All candidates of a family."""
    found: dict[tuple[ScheduleName, int, tuple[str, ...], int], list[Candidate]] = {}
    for candidate in candidates(family, space):
        stride = candidate.tensor_stride if candidate.tensor > 1 else 1
        key = candidate.schedule, candidate.virtual, candidate.offload, stride
        found.setdefault(key, []).append(candidate)
    return tuple(Bundle(family, *key, tuple(members)) for key, members in found.items())
