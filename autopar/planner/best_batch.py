"""``--batch auto``: the global batch of the best predicted throughput.

Tried are multiples of the number of devices (of the least common multiple with what a pinned micro-batch and
data degree divide) by 1, 2, 3, 4, 6, 8, 12, ...: 2^i and 3 * 2^i samples a device, up to 64, or to eight of
the least micro-batch that is allowed. Where the largest that is allowed divides none of these, such multiples
of it are tried as well. Since a larger batch only divides what a step costs once among more samples, the
throughput levels off: the search ends when three batches in a row bring less than 1% over the best before.
All batches share one capture and one set of tables, which depend on the micro-batch alone.
"""

from __future__ import annotations

import time
from dataclasses import replace
from math import lcm

from autopar.capture.capture import Capture
from autopar.errors import CaptureError, InfeasibleError
from autopar.plan.bounds import Bound
from autopar.plan.decisions import Plan
from autopar.planner.legal_families import legal_families
from autopar.planner.planner import PlanningTask, Progress, Watch, captured_for, choices_for
from autopar.planner.request import BatchTried, PlanRequest, PlanResult
from autopar.planner.settle import settle

_MOST_SAMPLES, _MOST_MICRO_BATCHES = 64, 8
_WORTH_GOING_ON = 0.01
_MOST_IN_VAIN = 3


def batch_sizes(num_devices: int, constraints: Plan) -> tuple[int, ...]:
    """The global batches that are tried, ascending."""
    bound = constraints.bounds.get("batch.micro", Bound())
    data = constraints.mesh.data or 1
    least = constraints.micro_batch or max(1, bound.least)
    most = max(_MOST_SAMPLES, _MOST_MICRO_BATCHES * least) * num_devices
    sizes = _multiples(lcm(num_devices, (constraints.micro_batch or 1) * data), most)
    largest = (bound.most or 1) * data
    if all(size % largest for size in sizes):
        larger = lcm(num_devices, largest)
        sizes |= _multiples(larger, most) if larger <= most else set()
    return tuple(sorted(sizes))


def _multiples(unit: int, most: int) -> set[int]:
    """The multiples by 2^i and 3 * 2^i up to ``most``; the unit itself in any case."""
    times = max(1, most // unit)
    factors = {base << power for base in (1, 3) for power in range(times.bit_length())}
    return {unit * factor for factor in factors if factor <= times}


def plan_best_batch(
    request: PlanRequest,
    progress: Progress | None = None,
    captured: Capture | None = None,
    watch: Watch | None = None,
) -> PlanResult:
    """The plan of most samples per second over the global batches; ``batches`` says what each would bring.

    Args:
        request: its ``global_batch`` is not looked at; the time limit is that of all batches together.
        progress: told, in a few words, what is being done.
        captured: the model, if it has been captured in the precision before.
        watch: told how far the search of each batch has come.

    Raises:
        InfeasibleError: no batch fits: what the smallest misses.
        PlanError: the constraints fix the global batch, or are wrong for the model.
        CaptureError: the model cannot be captured.
    """
    started = time.monotonic()
    if request.constraints.global_batch is not None:
        raise request.constraints.error(
            "batch.global",
            f"batch.global is {request.constraints.global_batch} here and auto in --batch auto; "
            "both are constraints: keep one",
        )
    sizes = batch_sizes(request.cluster.num_devices, request.constraints)
    settled, _ = settle(replace(request, global_batch=sizes[-1]))
    if progress is not None:
        progress("capturing the model")
    captured = captured_for(request, settled, captured)
    choices = choices_for(request, settled, captured)
    sweep = _Sweep(
        request, progress, watch, None if request.time_limit_s is None else started + request.time_limit_s
    )
    capture_s = time.monotonic() - started
    plain = replace(request, top=1, with_baselines=False)

    def task_of(size: int, asked: PlanRequest) -> PlanningTask:
        own = replace(settled, global_batch=size)
        return PlanningTask(asked, own, choices, captured, *legal_families(choices, own, request.cluster))

    for size in sizes:
        if sweep.is_over:
            break
        try:
            task = task_of(size, plain)
        except InfeasibleError as refused:  # the pins do not divide this batch
            sweep.refuse(size, refused)
            continue
        sweep.attempt(size, task)
    best = sweep.outcome()
    assert best.plan.global_batch is not None
    if not sweep.is_late and (request.top > 1 or request.with_baselines):
        # Once more, with what stands beside the answer.
        again = task_of(best.plan.global_batch, request).solve(sweep.left_s, progress, watch)
        best = again if again and again.plan == best.plan else best
    wall_s = time.monotonic() - started
    note = f"global batch: {best.plan.global_batch} samples, the best of {_listed(sweep.tried)}"
    return replace(
        best,
        notes=(note, *best.notes),
        batches=tuple(sweep.tried),
        search=replace(best.search, wall_s=wall_s, capture_s=capture_s, solve_s=wall_s - capture_s),
    )


class _Sweep:
    """What is known of the batches tried so far."""

    def __init__(
        self, request: PlanRequest, progress: Progress | None, watch: Watch | None, deadline: float | None
    ) -> None:
        self.tried: list[BatchTried] = []
        self._request, self._progress, self._deadline = request, progress, deadline
        self._watch = watch
        self._best: PlanResult | None = None
        self._in_vain = 0
        self._problem: InfeasibleError | CaptureError | None = None
        self._refused: InfeasibleError | None = None
        self._is_hopeless = False

    @property
    def left_s(self) -> float | None:
        """Of the time limit."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    @property
    def is_late(self) -> bool:
        """Whether the time is up."""
        return self.left_s == 0.0

    @property
    def is_over(self) -> bool:
        """Whether larger batches are not worth trying, or the time is up."""
        is_late = self.is_late and bool(self.tried)
        return is_late or self._is_hopeless or self._in_vain >= _MOST_IN_VAIN

    @property
    def _needs_many_samples(self) -> bool:
        """Whether a micro-batch that is pinned, or is to be large, leaves small batches few data ranks."""
        constraints = self._request.constraints
        bound = constraints.bounds.get("batch.micro")
        return constraints.micro_batch is not None or (bound is not None and bound.least > 1)

    def refuse(self, size: int, problem: InfeasibleError) -> None:
        """Notes a batch that the pins forbid."""
        self._refused = self._refused or problem
        self.tried.append(BatchTried(size, None, None))

    def skip(self, size: int, problem: InfeasibleError | CaptureError) -> None:
        """Notes a batch that brings nothing."""
        self._problem = self._problem or problem
        self.tried.append(BatchTried(size, None, None))

    def attempt(self, size: int, task: PlanningTask) -> None:
        """Plans for one batch."""
        if self._progress is not None:
            self._progress(f"global batch {size}")
        try:
            found = task.solve(self.left_s, self._progress, self._watch)
        except CaptureError as refused:
            self.skip(size, refused)
        except InfeasibleError as late:
            self._problem = self._problem or late
            self._is_hopeless = True
        else:
            if found is not None:
                self._keep(size, found)
                return
            # A larger batch needs no less memory, unless the micro-batch keeps meshes from small ones.
            self._is_hopeless = not self._needs_many_samples and self._best is None
            self.skip(size, self._problem or task.why_nothing_fits())

    def outcome(self) -> PlanResult:
        """The plan of the best throughput; of equally good ones the smallest batch's."""
        if self._best is not None:
            return self._best
        problem = self._problem or self._refused
        assert problem is not None
        raise problem

    def _keep(self, size: int, found: PlanResult) -> None:
        rate = found.prediction.samples_per_s
        self.tried.append(BatchTried(size, found.prediction.step_time_s, rate))
        before = self._best.prediction.samples_per_s if self._best is not None else 0.0
        self._in_vain = 0 if rate > before * (1 + _WORTH_GOING_ON) else self._in_vain + 1
        if rate > before:
            self._best = found


def _listed(tried: list[BatchTried]) -> str:
    """E.g. ``2 tried (samples/s: 8: 120, 16: 200)``."""
    rates = [
        f"{one.global_batch}: {'no plan' if one.samples_per_s is None else f'{one.samples_per_s:,.4g}'}"
        for one in tried
    ]
    return f"{len(tried)} tried (samples/s: {'; '.join(rates)})"
