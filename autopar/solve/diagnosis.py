"""Why nothing fits, in numbers: the least that is missing, where, and the smallest remedies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from autopar.solve.candidate import Candidate, Choices, Job, MeshSolution, Shortfall
from autopar.solve.mesh import least_state_bytes, shortfall_of, solve_mesh

_MOST_TRIED = 24
_MOST_GROWTH = 10
_MOST_PROOFS = 10


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
    considered = tuple(candidates)
    least = _proven(choices, least_shortfall(choices, considered, job), job)
    return Diagnosis(
        least,
        job.memory_limit_bytes + least.missing_bytes,
        _enough_devices(choices, considered, least.candidate, job) if may_grow else None,
    )


def least_shortfall(choices: Choices, candidates: Iterable[Candidate], job: Job) -> Shortfall:
    """The least of what the meshes miss, each at its leanest; best first by what none can avoid."""
    leanest: dict[tuple[int, int, int], Candidate] = {}
    for candidate in candidates:
        known = leanest.get(candidate.mesh)
        if known is None or _fullness(candidate) < _fullness(known):
            leanest[candidate.mesh] = candidate
    ordered = sorted(
        (least_state_bytes(choices.trainable_elements, c, job) - job.memory_limit_bytes, c)
        for c in leanest.values()
    )
    best: Shortfall | None = None
    for unavoidable_bytes, candidate in ordered[:_MOST_TRIED]:
        if best is not None and unavoidable_bytes >= best.missing_bytes:
            break
        found = shortfall_of(choices, candidate, job)
        if best is None or found.missing_bytes < best.missing_bytes:
            best = found
    assert best is not None
    return best


def _proven(choices: Choices, least: Shortfall, job: Job) -> Shortfall:
    """The shortfall by the step model's count of memory: with so much more, a plan is found that fits."""
    for _ in range(_MOST_PROOFS):
        limit_bytes = job.memory_limit_bytes + max(least.missing_bytes, 0)
        found = solve_mesh(choices, least.candidate, replace(job, memory_limit_bytes=limit_bytes))
        if isinstance(found, MeshSolution):
            totals = [stage.memory.total_bytes for stage in found.prediction.stages]
            return replace(
                least, stage=totals.index(max(totals)), missing_bytes=max(totals) - job.memory_limit_bytes
            )
        step_bytes = max(found.missing_bytes, job.memory_limit_bytes // 1000)
        least = replace(found, missing_bytes=max(least.missing_bytes, 0) + step_bytes)
    return least


def _fullness(candidate: Candidate) -> tuple[int, int]:
    return candidate.micro_batch, -max(candidate.zero)


def _enough_devices(
    choices: Choices, candidates: Iterable[Candidate], least: Candidate, job: Job
) -> int | None:
    """Doubles the cluster until some mesh fits, at the largest tensor degree considered."""
    tensor = max(candidate.tensor for candidate in candidates)
    for growth in range(1, _MOST_GROWTH + 1):
        cluster = replace(job.cluster, nodes=job.cluster.nodes * 2**growth)
        grown_job = replace(job, cluster=cluster)
        for grown in _grown(least, tensor, cluster.num_devices, choices.num_blocks, job.global_batch):
            unavoidable_bytes = least_state_bytes(choices.trainable_elements, grown, grown_job)
            if unavoidable_bytes > job.memory_limit_bytes:
                continue
            if shortfall_of(choices, grown, grown_job).missing_bytes <= 0:
                return cluster.num_devices
    return None


def _grown(
    least: Candidate, tensor: int, num_devices: int, num_blocks: int, global_batch: int
) -> Iterator[Candidate]:
    """Settings for more devices: pipelines by powers of two, the rest on the data axis with ZeRO 3."""
    for pipeline in (2**power for power in range(num_blocks.bit_length())):
        if pipeline > num_blocks or num_devices % (pipeline * tensor):
            continue
        data = num_devices // (pipeline * tensor)
        yield replace(
            least,
            pipeline=pipeline,
            tensor=tensor,
            data=data,
            num_micro_batches=max(1, global_batch // (data * least.micro_batch)),
            zero=(0 if data == 1 else 3,) * pipeline,
        )
