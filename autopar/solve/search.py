"""The joint search over meshes, micro-batches and ZeRO levels: best first by a lower bound.

Every candidate waits in one queue with a lower bound of its step time. The bound starts as FLOPs at peak, is
tightened by the operator ILPs with free boundaries, and becomes the predicted step time when the candidate is
solved. When the first in the queue is not quicker than the best solved, nothing behind it is either, and the
search ends. The bound is

    T + (m - 1) · T / p        for m micro-batches over p stages and a chain of T seconds a micro-batch,

the objective of an even pipeline without communication on the data axis and without update. Where devices
take turns on processors (``Device.time_share``), those that wait leave theirs to the others: a step takes no
less than its work divided among all, nor than what depends on each other at full speed.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from autopar.errors import CaptureError, InfeasibleError
from autopar.hardware.device import Device
from autopar.solve.candidate import (
    Alternative,
    Candidate,
    Choices,
    Job,
    MeshSolution,
    SearchResult,
    Shortfall,
)
from autopar.solve.mesh import least_state_bytes, solve_mesh
from autopar.solve.why_not import does_not_fit, why_not


@dataclass(order=True, slots=True)
class _Waiting:
    """A candidate in the queue; ``effort`` says how much its bound has cost so far."""

    bound_s: float
    candidate: Candidate
    effort: int = field(compare=False)


@dataclass(slots=True)
class _State:
    """What the search knows so far."""

    solved: list[MeshSolution] = field(default_factory=list)
    shortfalls: dict[Candidate, int] = field(default_factory=dict)
    chains: dict[tuple[int, int], float] = field(default_factory=dict)
    refused: CaptureError | None = None

    @property
    def best(self) -> MeshSolution | None:
        return min(self.solved, key=_rank, default=None)


def search(
    choices: Choices,
    candidates: Iterable[Candidate],
    job: Job,
    *,
    num_alternatives: int = 3,
    time_limit_s: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> SearchResult | None:
    """The candidate of least predicted step time; None where none fits.

    Args:
        num_alternatives: other meshes of which a candidate is solved as well, to be shown beside the best.
        time_limit_s: wall time after which the best found so far is returned with its gap.
        progress: told, in a few words, what is being solved.

    Raises:
        InfeasibleError: nothing was found within the time limit.
        CaptureError: the model works at none of the micro-batches.
    """
    deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
    state = _State()
    queue = _start(choices, candidates, job, state)
    num_candidates = len(queue) + len(state.shortfalls)
    bound_s = _run(choices, queue, job, state, deadline, progress)
    best = state.best
    if best is None:
        if state.refused is not None and not state.shortfalls:
            raise state.refused
        if queue:
            raise InfeasibleError(
                "no plan was found within the time limit; allow more with --time-limit", binding="time limit"
            )
        return None
    num_solved = len(state.solved) + len(state.shortfalls)
    alternatives = _alternatives(choices, queue, job, state, num_alternatives, deadline)
    step_s = best.prediction.step_time_s
    return SearchResult(
        best=best,
        bound_s=min(bound_s, step_s),
        gap=max(0.0, 1 - bound_s / step_s),
        num_candidates=num_candidates,
        num_solved=num_solved,
        alternatives=alternatives,
    )


def _rank(solution: MeshSolution) -> tuple[float, Candidate]:
    return solution.prediction.step_time_s, solution.candidate


def step_floor_s(candidate: Candidate, chain_s: float, device: Device) -> float:
    """Lower bound of the step from the time of the whole chain for one micro-batch."""
    alone_s = chain_s * (1 + (candidate.num_micro_batches - 1) / candidate.pipeline)
    work_s = chain_s * candidate.num_micro_batches / candidate.pipeline
    return max(work_s, alone_s / device.time_share)


def _start(choices: Choices, candidates: Iterable[Candidate], job: Job, state: _State) -> list[_Waiting]:
    """The queue; candidates whose parameters alone do not fit are left out."""
    queue = []
    for candidate in candidates:
        missing = least_state_bytes(choices.trainable_elements, candidate, job) - job.memory_limit_bytes
        if missing > 0:
            state.shortfalls[candidate] = missing
            continue
        chain_s = choices.floor_s(candidate.tensor, candidate.micro_batch, 0)
        floor_s = step_floor_s(candidate, chain_s, job.cluster.device)
        queue.append(_Waiting(floor_s, candidate, 0))
    heapq.heapify(queue)
    return queue


def _run(
    choices: Choices,
    queue: list[_Waiting],
    job: Job,
    state: _State,
    deadline: float | None,
    progress: Callable[[str], None] | None,
) -> float:
    """Works the queue off; returns the lower bound of everything that was not solved."""
    best_s = float("inf")
    while queue:
        if queue[0].bound_s >= best_s or (deadline is not None and time.monotonic() > deadline):
            break
        first = heapq.heappop(queue)
        candidate = first.candidate
        if first.effort == 0:
            try:
                heapq.heappush(queue, _tightened(choices, first, state, job.cluster.device))
            except CaptureError as refused:
                # The model does not work at this micro-batch (BatchNorm of one sample, say).
                state.refused = state.refused or refused
            continue
        if progress is not None:
            p, d, t = candidate.mesh
            progress(f"mesh {p} x {d} x {t}, micro-batch {candidate.micro_batch}, ZeRO {max(candidate.zero)}")
        found = solve_mesh(choices, candidate, job)
        if isinstance(found, Shortfall):
            state.shortfalls[candidate] = found.missing_bytes
            continue
        state.solved.append(found)
        best_s = min(best_s, found.prediction.step_time_s)
    # What was not solved to the optimum of its objective may hide as much of its step time.
    unproved = [_proved_s(solution, choices, job.cluster.device) for solution in state.solved]
    return min([best_s, *unproved, *(waiting.bound_s for waiting in queue[:1])])


def _proved_s(solution: MeshSolution, choices: Choices, device: Device) -> float:
    """What no solution of the candidate is quicker than."""
    step_s, candidate = solution.prediction.step_time_s, solution.candidate
    if device.time_share == 1 or candidate.pipeline == 1:
        return step_s * solution.bound_s / solution.objective_s
    # The chain is solved as if no stage ran the quicker for another's waiting.
    chain_s = choices.floor_s(candidate.tensor, candidate.micro_batch, 1)
    return min(step_s, step_floor_s(candidate, chain_s, device))


def _tightened(choices: Choices, waiting: _Waiting, state: _State, device: Device) -> _Waiting:
    """A candidate with a better bound: from a larger micro-batch where that is enough, else its own.

    A micro-batch is at least as quick a sample as a smaller one, so that its chain bounds the smaller one's;
    unless blocks were measured: a small one may fit into caches.
    """
    candidate = waiting.candidate
    per_sample_s = [
        chain_s / size
        for (tensor, size), chain_s in state.chains.items()
        if tensor == candidate.tensor and size > candidate.micro_batch and not device.blocks
    ]
    scaled_s = step_floor_s(candidate, max(per_sample_s, default=0.0) * candidate.micro_batch, device)
    if scaled_s > waiting.bound_s * (1 + 1e-9):
        return _Waiting(scaled_s, candidate, 0)
    chain_s = choices.floor_s(candidate.tensor, candidate.micro_batch, 1)
    state.chains[candidate.tensor, candidate.micro_batch] = chain_s
    return _Waiting(max(waiting.bound_s, step_floor_s(candidate, chain_s, device)), candidate, 1)


def _alternatives(
    choices: Choices,
    queue: Sequence[_Waiting],
    job: Job,
    state: _State,
    num_wanted: int,
    deadline: float | None,
) -> tuple[Alternative, ...]:
    """The best candidate of each of the next best meshes, and what each loses."""
    best = state.best
    assert best is not None
    by_mesh: dict[tuple[int, int, int], list[MeshSolution]] = {}
    for solution in state.solved:
        by_mesh.setdefault(solution.candidate.mesh, []).append(solution)
    waiting = sorted(queue)
    meshes = dict.fromkeys(item.candidate.mesh for item in waiting if item.candidate.mesh not in by_mesh)
    for mesh in meshes:
        late = deadline is not None and time.monotonic() > deadline
        if len(by_mesh) > num_wanted or late:
            break
        own = _State(chains=state.chains, shortfalls=state.shortfalls)
        _run(choices, [item for item in waiting if item.candidate.mesh == mesh], job, own, deadline, None)
        if own.solved:
            by_mesh[mesh] = own.solved
    runners_up = []
    for mesh, solutions in by_mesh.items():
        if mesh != best.candidate.mesh:
            other = min(solutions, key=_rank)
            runners_up.append(
                (_rank(other), Alternative(other.candidate, other.prediction, why_not(other, best)))
            )
    for candidate, missing_bytes in sorted(state.shortfalls.items(), key=lambda item: (item[1], item[0])):
        if candidate.mesh not in by_mesh:
            by_mesh[candidate.mesh] = []
            text = does_not_fit(missing_bytes)
            runners_up.append(((float("inf"), candidate), Alternative(candidate, None, text)))
    return tuple(alternative for _, alternative in sorted(runners_up, key=lambda r: r[0])[:num_wanted])
