"""Why nothing fits, in numbers: the least that is missing, where, and the smallest remedies; none of it needs
times, and little of it tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from autopar.errors import CaptureError
from autopar.plan.decisions import MESH_AXES, ScheduleName
from autopar.solve.candidate import Candidate, Choices, Family, Job, MeshSolution, Shortfall
from autopar.solve.candidates import NO_OFFLOAD, OuterPins, Space, candidates, divisors
from autopar.solve.mesh import least_state_bytes, shortfall_of, solve_mesh

_MOST_TRIED = 64
_LEAN_SCHEDULES = (ScheduleName.ONE_F_ONE_B, ScheduleName.ZBV)
_MOST_PROOFS = 10
_FACTORS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The candidate that misses least, at its leanest.

    Attributes:
        enough_bytes: memory per device that would do.
        enough_devices: how many such devices would do; None if none of those tried.
    """

    least: Shortfall
    enough_bytes: int
    enough_devices: int | None


def diagnose(
    choices: Choices, families: Iterable[Family], space: Space, job: Job, *, may_grow: bool
) -> Diagnosis:
    """The least shortfall of all candidates, and what would remedy it.

    Args:
        may_grow: whether more devices may be proposed: not where pins fix how many take part.
    """
    considered = tuple(families)
    least = _proven(choices, least_shortfall(choices, considered, space, job), job)
    return Diagnosis(
        least,
        job.memory_limit_bytes + least.missing_bytes,
        enough_devices(choices, considered, space, least.candidate, job) if may_grow else None,
    )


def fits(choices: Choices, families: Iterable[Family], space: Space, job: Job) -> Candidate | None:
    """A candidate that fits, if the leanest of some mesh does."""
    try:
        least = least_shortfall(choices, families, space, job)
    except (CaptureError, ValueError):
        return None
    if least.missing_bytes > 0:
        return None
    found = solve_mesh(choices, least.candidate, job)
    return least.candidate if isinstance(found, MeshSolution) else None


def least_shortfall(choices: Choices, families: Iterable[Family], space: Space, job: Job) -> Shortfall:
    """The least of what the meshes miss, each at its leanest; best first by what none can avoid.

    Raises:
        ValueError: there is nothing to consider.
    """
    ordered = sorted(
        (least_state_bytes(choices.trainable_elements, c, job) - job.memory_limit_bytes, c)
        for c in _leanest(families, space)
    )
    best: Shortfall | None = None
    for unavoidable_bytes, candidate in ordered[:_MOST_TRIED]:
        if best is not None and (unavoidable_bytes >= best.missing_bytes or best.missing_bytes <= 0):
            break
        found = shortfall_of(choices, candidate, job)
        if best is None or found.missing_bytes < best.missing_bytes:
            best = found
    if best is None:
        raise ValueError("nothing to consider")
    return best


def _leanest(families: Iterable[Family], space: Space) -> Iterator[Candidate]:
    """Of every mesh, at its smallest micro-batch, the candidates that may hold least."""
    smallest: dict[tuple[int, int, int], Family] = {}
    for family in families:
        mesh = family.pipeline, family.data, family.tensor
        known = smallest.get(mesh)
        if known is None or family.micro_batch < known.micro_batch:
            smallest[mesh] = family
    for family in smallest.values():
        for candidate in candidates(family, space):
            simple = candidate.schedule in _LEAN_SCHEDULES and candidate.shard_group == 0
            if space.pins.schedule is not None or (simple and candidate.order == MESH_AXES):
                yield candidate


def _proven(choices: Choices, least: Shortfall, job: Job) -> Shortfall:
    """The shortfall by the step model's count of memory: with so much more, a plan is found that fits."""
    for _ in range(_MOST_PROOFS):
        limit_bytes = job.memory_limit_bytes + max(least.missing_bytes, 0)
        roomy = replace(job, memory_limit_bytes=limit_bytes)
        found = solve_mesh(choices, least.candidate, roomy)
        if isinstance(found, MeshSolution):
            totals = [stage.memory.total_bytes for stage in found.prediction.stages]
            return replace(
                least, stage=totals.index(max(totals)), missing_bytes=max(totals) - job.memory_limit_bytes
            )
        step_bytes = max(found.missing_bytes, job.memory_limit_bytes // 1000)
        least = replace(found, missing_bytes=max(least.missing_bytes, 0) + step_bytes)
    return least


def enough_devices(
    choices: Choices, families: Iterable[Family], space: Space, least: Candidate, job: Job
) -> int | None:
    """The fewest devices, of some multiples of those there are, on which some mesh fits."""
    degrees = sorted({family.tensor for family in families}, reverse=True)
    for factor in _FACTORS:
        cluster = replace(job.cluster, nodes=job.cluster.nodes * factor)
        grown_job = replace(job, cluster=cluster)
        for grown in _grown(least, degrees[0], cluster.num_devices, choices.num_blocks, space.pins, job):
            unavoidable_bytes = least_state_bytes(choices.trainable_elements, grown, grown_job)
            if unavoidable_bytes > job.memory_limit_bytes:
                continue
            if shortfall_of(choices, grown, grown_job).missing_bytes <= 0:
                return cluster.num_devices
    return None


def _grown(
    least: Candidate, tensor: int, num_devices: int, num_blocks: int, pins: OuterPins, job: Job
) -> Iterator[Candidate]:
    """Settings for more devices: every pipeline, the rest on the data axis, at the highest ZeRO level."""
    level = max(least.zero) if pins.zero is not None else 3
    for pipeline in divisors(num_devices // tensor) if num_devices % tensor == 0 else ():
        data = num_devices // (pipeline * tensor)
        if pipeline * least.virtual > num_blocks or job.global_batch % (data * least.micro_batch):
            continue
        if pins.mesh.pipeline not in (None, pipeline) or pins.mesh.data not in (None, data):
            continue
        yield replace(
            least,
            pipeline=pipeline,
            tensor=tensor,
            data=data,
            num_micro_batches=job.global_batch // (data * least.micro_batch),
            zero=(0 if data == 1 and pins.zero is None else level,) * (pipeline * least.virtual),
            shard_group=0,
            offload=least.offload if pins.offload is not None else NO_OFFLOAD,
        )
