"""From a model and a cluster to a complete plan: capture, candidates, search, and the plan's lines."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from autopar.capture.capture import Capture, capture
from autopar.cost.blocks import Readings
from autopar.cost.breakdown import break_down
from autopar.cost.measured import measured_note
from autopar.cost.prediction import Prediction
from autopar.cost.step_timeline import step_timeline
from autopar.errors import InfeasibleError
from autopar.hardware.cluster import Cluster
from autopar.plan.decisions import MESH_AXES, Mesh, Plan
from autopar.plan.hand_made import codes_of_chosen
from autopar.planner.block_store import BlockStore
from autopar.planner.check import DTYPES, predict_plan
from autopar.planner.compose import compose_plan
from autopar.planner.explain_infeasible import nothing_fits
from autopar.planner.legal_families import legal_families
from autopar.planner.model_choices import ModelChoices
from autopar.planner.pins import pinned_first_blocks
from autopar.planner.remedies import find_remedies
from autopar.planner.repeated_work import repeated_work
from autopar.planner.request import (
    BaselineResult,
    PlanRequest,
    PlanResult,
    RunnerUp,
    SearchStatistics,
)
from autopar.planner.settle import settle
from autopar.planner.tables_ahead import TablesAhead
from autopar.solve.candidate import Alternative, BaselineFound, Family, Job, SearchResult
from autopar.solve.candidates import Space
from autopar.solve.considered import News
from autopar.solve.diagnosis import diagnose, fits, may_fit
from autopar.solve.search import search

Progress = Callable[[str], None]
Watch = Callable[[News], None]


def make_plan(
    request: PlanRequest,
    progress: Progress | None = None,
    captured: Capture | None = None,
    watch: Watch | None = None,
) -> PlanResult:
    """The plan of least predicted step time within the constraints.

    Args:
        request: what is asked for.
        progress: told, in a few words, what is being done.
        captured: the model, if it has been captured in the precision before.
        watch: told how far the search has come.

    Raises:
        InfeasibleError: no plan fits; names the binding constraint and the shortfall.
        PlanError: the constraints are wrong for the model.
        CaptureError: the model cannot be captured.
    """
    started = time.monotonic()
    tell = progress or (lambda text: None)
    settled, notes = settle(request)
    for note in notes:
        tell(note)
    tell("capturing the model")
    captured = captured_for(request, settled, captured)
    choices = choices_for(request, settled, captured)
    capture_s = time.monotonic() - started
    task = PlanningTask(
        request, settled, choices, captured, *legal_families(choices, settled, request.cluster)
    )
    result = task.solve(request.time_limit_s, progress, watch)
    if result is None:
        raise task.why_nothing_fits()
    wall_s = time.monotonic() - started
    return replace(
        result,
        notes=(*notes, *result.notes),
        search=replace(result.search, wall_s=wall_s, capture_s=capture_s, solve_s=wall_s - capture_s),
    )


def captured_for(request: PlanRequest, settled: Plan, captured: Capture | None) -> Capture:
    """The model in the precision of the plan."""
    assert settled.precision is not None
    captured = captured or capture(request.source, DTYPES[settled.precision])
    assert captured.dtype == DTYPES[settled.precision]
    return captured


def choices_for(
    request: PlanRequest, settled: Plan, captured: Capture, store: BlockStore | None = None
) -> ModelChoices:
    """The tables of a captured model; they hold for the global batch and for smaller ones.

    Args:
        store: what is known of the model's blocks from other searches.
    """
    assert settled.precision is not None
    return ModelChoices(captured, request.cluster, settled.precision, settled, store)


class PlanningTask:
    """A request with everything that is known before the search.

    Args:
        settled: the constraints with all that is given.
        legal: what may be searched.
    """

    def __init__(
        self,
        request: PlanRequest,
        settled: Plan,
        choices: ModelChoices,
        captured: Capture,
        legal: tuple[Family, ...],
        space: Space,
    ) -> None:
        assert settled.precision is not None and settled.optimizer is not None
        assert settled.global_batch is not None
        self._request, self._settled, self._choices, self._captured = request, settled, choices, captured
        self._legal, self._space = legal, space
        self._job = Job(
            request.cluster,
            settled.precision,
            settled.optimizer,
            settled.global_batch,
            request.memory_limit_bytes or request.cluster.device.memory_bytes,
            pinned_first_blocks(settled, choices.graph),
            settled.stage_sizes,
        )

    def solve(
        self, time_limit_s: float | None, progress: Progress | None, watch: Watch | None = None
    ) -> PlanResult | None:
        """The best plan; None where none fits.

        Raises:
            InfeasibleError: nothing was found within the time limit.
            CaptureError: the model works at none of the micro-batches.
        """
        started = time.monotonic()
        found = self._search(time_limit_s, progress, watch)
        if found is None:
            return None
        cluster = self._request.cluster
        plan = compose_plan(self._settled, found.best, self._choices, cluster)
        plan = replace(plan, chosen=codes_of_chosen(plan, self._request.constraints))
        prediction = _checked_prediction(plan, self._captured, cluster, self._job, self._choices.readings)
        step_s = prediction.step_time_s
        bound_s = min(found.bound_s, step_s)
        gap = 0.0 if found.gap <= 0 else 1 - bound_s / step_s
        wall_s = time.monotonic() - started
        notes = _notes(plan, self._captured, cluster, progress or (lambda text: None))
        return PlanResult(
            plan=plan,
            status="optimal" if gap <= 1e-9 else "feasible",
            gap=gap,
            bound_s=bound_s if gap > 0 else step_s,
            prediction=prediction,
            alternatives=tuple(_runner_up(a, cluster) for a in found.alternatives),
            search=SearchStatistics(wall_s, 0.0, wall_s, found.num_candidates, found.num_solved),
            notes=notes,
            baselines=tuple(_baseline(baseline, step_s) for baseline in found.baselines),
            considered=found.considered,
            timeline=step_timeline(found.best.layout, cluster),
        )

    def why_nothing_fits(self) -> InfeasibleError:
        """By how much the memory is missed, and what would remedy it."""
        settled, job = self._settled, self._job
        may_grow = not (settled.mesh.pipeline and settled.mesh.data)
        diagnosis = diagnose(self._choices, self._legal, self._space, job, may_grow=may_grow)
        remedies = find_remedies(diagnosis, self._choices, self._captured, settled, job)
        return nothing_fits(diagnosis.least, remedies, job, settled)

    def _search(
        self, time_limit_s: float | None, progress: Progress | None, watch: Watch | None
    ) -> SearchResult | None:
        choices, legal, space, job = self._choices, self._legal, self._space, self._job
        if not may_fit(choices, legal, space, job):
            return None  # told at once: the search would first cost what it cannot place
        try:
            with TablesAhead(choices, legal) as ahead:
                return search(
                    ahead,
                    legal,
                    space,
                    job,
                    num_alternatives=max(0, self._request.top - 1),
                    with_baselines=self._request.with_baselines,
                    time_limit_s=time_limit_s,
                    effort=self._request.effort,
                    progress=progress,
                    watch=watch,
                )
        except InfeasibleError:
            # It gave up before it had found anything: is there anything to be found?
            leanest = fits(choices, legal, space, job)
            if leanest is None and time_limit_s is None:
                return None
            if leanest is None:
                raise
        floors = (choices.floor_s(f.tensor, f.micro_batch) * f.num_micro_batches / f.pipeline for f in legal)
        bound_s = min(*floors, leanest.step_s)
        return SearchResult(leanest, bound_s, 1 - bound_s / leanest.step_s, 0, 1)


def _notes(plan: Plan, captured: Capture, cluster: Cluster, tell: Progress) -> tuple[str, ...]:
    assert plan.micro_batch is not None
    graph = captured.at(plan.micro_batch)
    found = measured_note(graph, cluster.device), repeated_work(plan), _counters(captured)
    notes = tuple(note for note in found if note)
    for note in notes:
        tell(note)
    return notes


def _counters(captured: Capture) -> str:
    names = captured.unused_counters
    return names and (
        f"the model's forward changes {names}, which under a plan stays as it was at capture; "
        "this step does not depend on it, but a later one may"
    )


def _checked_prediction(
    plan: Plan, captured: Capture, cluster: Cluster, job: Job, readings: Readings
) -> Prediction:
    assert plan.micro_batch is not None
    prediction = predict_plan(plan, captured.at(plan.micro_batch), cluster, job.memory_limit_bytes, readings)
    assert prediction.fits, "the plan as written does not fit although the solution does"
    return prediction


def _runner_up(alternative: Alternative, cluster: Cluster) -> RunnerUp:
    candidate, prediction = alternative.candidate, alternative.prediction
    level = candidate.zero[0] if len(set(candidate.zero)) == 1 else candidate.zero
    return RunnerUp(
        mesh=Mesh(
            candidate.pipeline,
            candidate.data,
            candidate.tensor,
            None if candidate.order == MESH_AXES else _three(candidate.order),
        ),
        schedule=candidate.schedule,
        virtual=candidate.virtual,
        shard_group=candidate.shard_group or candidate.data,
        offload=",".join(candidate.offload) or "none",
        micro_batch=candidate.micro_batch,
        zero=level,
        step_time_s=prediction.step_time_s if prediction else None,
        peak_memory_bytes=prediction.peak_memory_bytes if prediction else None,
        why_not=alternative.why_not,
        terms=break_down(alternative.layout, cluster).terms if alternative.layout else None,
    )


def _baseline(found: BaselineFound, best_s: float) -> BaselineResult:
    if found.solution is None:
        return BaselineResult(found.name, None, None, None, None, None, None, found.why_not)
    candidate, prediction = found.solution.candidate, found.solution.prediction
    slower = prediction.step_time_s / best_s - 1
    return BaselineResult(
        found.name,
        Mesh(candidate.pipeline, candidate.data, candidate.tensor),
        candidate.micro_batch,
        max(candidate.zero),
        found.recompute,
        prediction.step_time_s,
        prediction.peak_memory_bytes,
        "as quick"
        if abs(slower) < 5e-4
        else f"{slower:.1%} slower"
        if slower > 0
        else f"{-slower:.1%} quicker",
    )


def _three(order: tuple[str, ...]) -> tuple[str, str, str]:
    slowest, middle, fastest = order
    return slowest, middle, fastest
