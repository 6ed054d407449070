"""Why nothing fits, in numbers: the least that is missing, where, and the smallest remedies; none of it needs
times, and little of it tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from autopar.cost.offload import host_state_bytes
from autopar.errors import CaptureError
from autopar.plan.decisions import MESH_AXES, ScheduleName
from autopar.solve.candidate import Candidate, Choices, Family, Job, MeshSolution, Shortfall
from autopar.solve.candidates import NO_OFFLOAD, Space, can_offload, candidates, divisors
from autopar.solve.chain_build import candidate_training
from autopar.solve.mesh import least_state_bytes, shortfall_of, solve_mesh

_MOST_TRIED = 64
_MOST_PROOFS = 10
_MOST_COMPARED = 8
_FACTORS = (
    *(2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48),
    *(64, 80, 96, 128, 160, 192, 256, 320, 384, 512),
)


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
    least = _least_proven(choices, _shortfalls(choices, considered, space, job), job)
    folded = _folded_shortfall(choices, considered, space, job)
    if folded is not None and folded.missing_bytes < least.missing_bytes:
        folded = _proven(choices, folded, job)
        least = min(folded, least, key=lambda shortfall: shortfall.missing_bytes)
    return Diagnosis(
        least,
        job.memory_limit_bytes + least.missing_bytes,
        enough_devices(choices, considered, space, least.candidate, job) if may_grow else None,
    )


def may_fit(choices: Choices, families: Iterable[Family], space: Space, job: Job) -> bool:
    """Whether what no rank can do without, the state of its parameters, fits under some candidate."""
    elements = choices.trainable_elements
    return any(
        least_state_bytes(elements, candidate, job) <= job.memory_limit_bytes
        and _host_has_room(elements, candidate, job)
        for family in reversed(_smallest_micro_batches(families))
        for candidate in candidates(family, space)
    )


def fits(choices: Choices, families: Iterable[Family], space: Space, job: Job) -> MeshSolution | None:
    """A plan that fits, if the leanest candidate of some mesh has one."""
    considered = tuple(families)
    if not may_fit(choices, considered, space, job):
        return None
    try:
        least = least_shortfall(choices, considered, space, job)
    except (CaptureError, ValueError):
        return None
    if least.missing_bytes > 0:
        return None
    found = solve_mesh(choices, least.candidate, job)
    return found if isinstance(found, MeshSolution) else None


def least_shortfall(choices: Choices, families: Iterable[Family], space: Space, job: Job) -> Shortfall:
    """The least of what the meshes miss, each at its leanest.

    Raises:
        ValueError: there is nothing to consider.
    """
    return _shortfalls(choices, families, space, job)[0]


def _shortfalls(choices: Choices, families: Iterable[Family], space: Space, job: Job) -> list[Shortfall]:
    """What meshes miss, each at its leanest, the least first; looked at are those that may miss least by what
    none can avoid.

    Raises:
        ValueError: there is nothing to consider.
    """
    elements = choices.trainable_elements
    lean = list(_leanest(families, space))
    lean = [c for c in lean if _host_has_room(elements, c, job)] or lean
    ordered = sorted((least_state_bytes(elements, c, job) - job.memory_limit_bytes, c) for c in lean)
    tried: list[Shortfall] = []
    least_bytes: int | None = None
    for unavoidable_bytes, candidate in ordered[:_MOST_TRIED]:
        if least_bytes is not None and (unavoidable_bytes >= least_bytes or least_bytes <= 0):
            break
        found = shortfall_of(choices, candidate, job)
        tried.append(found)
        least_bytes = found.missing_bytes if least_bytes is None else min(least_bytes, found.missing_bytes)
    if not tried:
        raise ValueError("nothing to consider")
    return sorted(tried, key=lambda shortfall: shortfall.missing_bytes)


def _leanest(families: Iterable[Family], space: Space) -> Iterator[Candidate]:
    """Of every mesh, at its smallest micro-batch, the candidates that may hold least."""
    for family in _smallest_micro_batches(families):
        legal = tuple(candidates(family, space))
        # One stage a rank: what several stages of a rank hold together is more than the chain counts.
        simple = [c for c in legal if c.schedule is ScheduleName.ONE_F_ONE_B and c.shard_group == 0]
        simple = [c for c in simple if c.order == MESH_AXES]
        yield from (legal if space.pins.schedule is not None else simple or legal)


def _folded_shortfall(
    choices: Choices, families: Iterable[Family], space: Space, job: Job
) -> Shortfall | None:
    """The least of schedules that give a rank two stages: they may hold less of activations, so that they are
    asked only where the state of the parameters fits. What it counts is too little, and has to be proved."""
    elements = choices.trainable_elements
    folded = (
        candidate
        for family in _smallest_micro_batches(families)
        for candidate in candidates(family, space)
        if candidate.schedule is ScheduleName.ZBV and candidate.order == MESH_AXES
    )
    fitting = [
        candidate
        for candidate in folded
        if candidate.shard_group == 0
        and least_state_bytes(elements, candidate, job) <= job.memory_limit_bytes
        and _host_has_room(elements, candidate, job)
    ]
    found = (shortfall_of(choices, candidate, job) for candidate in fitting[:_MOST_TRIED])
    return min(found, key=lambda shortfall: shortfall.missing_bytes, default=None)


def _smallest_micro_batches(families: Iterable[Family]) -> tuple[Family, ...]:
    """Of every mesh the family of the smallest micro-batch."""
    smallest: dict[tuple[int, int, int], Family] = {}
    for family in families:
        mesh = family.pipeline, family.data, family.tensor
        known = smallest.get(mesh)
        if known is None or family.micro_batch < known.micro_batch:
            smallest[mesh] = family
    return tuple(smallest.values())


def _host_has_room(trainable_elements: int, candidate: Candidate, job: Job) -> bool:
    """Whether a rank's even share of the state that is offloaded fits into its share of the host's memory."""
    training = candidate_training(candidate, job)
    elements = trainable_elements // (candidate.pipeline * candidate.tensor)
    needed = host_state_bytes(elements, 0, min(candidate.zero), training)
    return needed <= job.cluster.host_bytes_per_device


def _least_proven(choices: Choices, found: Sequence[Shortfall], job: Job) -> Shortfall:
    """The least of shortfalls by the step model's count of memory: what the chain counts is too little,
    by more for some than for others.

    Args:
        found: by the chain's count, the least first.
    """
    best = _proven(choices, found[0], job)
    for other in found[1:_MOST_COMPARED]:
        if other.missing_bytes >= best.missing_bytes:
            break
        proven = _proven(choices, other, job)
        if proven.missing_bytes < best.missing_bytes:
            best = proven
    return best


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
    elements, proofs = choices.trainable_elements, 0
    for factor in _FACTORS:
        cluster = replace(job.cluster, nodes=job.cluster.nodes * factor)
        grown_job = replace(job, cluster=cluster)
        for grown in _grown(least, degrees[0], cluster.num_devices, choices.num_blocks, space, job):
            if least_state_bytes(elements, grown, grown_job) > job.memory_limit_bytes:
                continue
            if not _host_has_room(elements, grown, grown_job):
                continue
            if shortfall_of(choices, grown, grown_job).missing_bytes > 0:
                continue
            # The step model counts what the chain does not.
            if isinstance(solve_mesh(choices, grown, grown_job), MeshSolution):
                return cluster.num_devices
            proofs += 1
            if proofs == _MOST_PROOFS:
                return None
    return None


def _grown(
    least: Candidate, tensor: int, num_devices: int, num_blocks: int, space: Space, job: Job
) -> Iterator[Candidate]:
    """Settings for more devices: every pipeline, the rest on the data axis, divided and offloaded as far as
    pins and runtime allow."""
    pins = space.pins
    offloads = (least.offload,) if pins.offload is not None else (least.offload, NO_OFFLOAD)
    levels = (max(least.zero),) if pins.zero is not None or "zero" in pins.bounds else (3, max(least.zero))
    for pipeline in divisors(num_devices // tensor) if num_devices % tensor == 0 else ():
        data = num_devices // (pipeline * tensor)
        if pipeline * least.virtual > num_blocks or job.global_batch % (data * least.micro_batch):
            continue
        if pins.mesh.pipeline not in (None, pipeline) or pins.mesh.data not in (None, data):
            continue
        if not (pins.holds("mesh.pipeline", pipeline) and pins.holds("mesh.data", data)):
            continue
        alone = (0, 3) if data == 1 and pins.zero is None else None
        for offload, level in product(dict.fromkeys(offloads), dict.fromkeys(alone or levels)):
            if alone and (level == 3) != ("parameters" in offload):
                continue  # nothing to divide
            zero = (level,) * (pipeline * least.virtual)
            if not space.allows(least.schedule, least.virtual, level, offload) or not can_offload(
                offload, zero
            ):
                continue
            yield replace(
                least,
                pipeline=pipeline,
                tensor=tensor,
                data=data,
                num_micro_batches=job.global_batch // (data * least.micro_batch),
                zero=zero,
                shard_group=0,
                offload=offload,
            )
