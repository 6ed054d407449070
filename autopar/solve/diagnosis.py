"""Why nothing fits, in numbers: the least that is missing, where, and the smallest remedies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from autopar.solve.candidate import Candidate, Choices, Job, Shortfall
from autopar.solve.mesh import least_state_bytes, shortfall_of

_MOST_TRIED = 24
_MOST_GROWTH = 10


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The candidate that misses least, at its leanest.

    Attributes:
        enough_bytes: memory per device that would do.
        enough_devices: how many such devices would do, by doubling; None if none of those tried.
    """

    least: Shortfall
    enough_bytes: int
    enough_devices: int | None


def diagnose(choices: Choices, candidates: Iterable[Candidate], job: Job, *, may_grow: bool) -> Diagnosis:
    """The least shortfall of all candidates, and what would remedy it.

    Args:
        may_grow: whether more devices may be proposed: not where pins fix how many take part.
    """
    least = least_shortfall(choices, candidates, job)
    return Diagnosis(
        least,
        job.memory_limit_bytes + least.missing_bytes,
        _enough_devices(choices, least.candidate, job) if may_grow else None,
    )


def least_shortfall(choices: Choices, candidates: Iterable[Candidate], job: Job) -> Shortfall:
    """The least of what the candidates miss, each at its leanest, in the order of what none can avoid."""
    ordered = sorted(
        (least_state_bytes(choices.trainable_elements, c, job) - job.memory_limit_bytes, c.micro_batch, c)
        for c in candidates
    )
    best: Shortfall | None = None
    for unavoidable_bytes, _, candidate in ordered[:_MOST_TRIED]:
        if best is not None and unavoidable_bytes >= best.missing_bytes:
            break
        found = shortfall_of(choices, candidate, job)
        if best is None or found.missing_bytes < best.missing_bytes:
            best = found
    assert best is not None
    return best


def _enough_devices(choices: Choices, candidate: Candidate, job: Job) -> int | None:
    """Doubles the cluster until some pipeline and data degrees fit at the candidate's tensor degree."""
    for growth in range(1, _MOST_GROWTH + 1):
        cluster = replace(job.cluster, nodes=job.cluster.nodes * 2**growth)
        grown_job = replace(job, cluster=cluster)
        for shift in range(growth + 1):
            pipeline = candidate.pipeline * 2**shift
            data = candidate.data * 2 ** (growth - shift)
            if pipeline > choices.num_blocks:
                continue
            num_micro_batches = max(1, job.global_batch // (data * candidate.micro_batch))
            grown = replace(
                candidate,
                pipeline=pipeline,
                data=data,
                num_micro_batches=num_micro_batches,
                zero=(max(candidate.zero) if data == 1 else 3,) * pipeline,
            )
            unavoidable_bytes = least_state_bytes(choices.trainable_elements, grown, grown_job)
            if unavoidable_bytes > job.memory_limit_bytes:
                continue
            if shortfall_of(choices, grown, grown_job).missing_bytes <= 0:
                return cluster.num_devices
    return None
