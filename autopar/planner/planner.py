"""From a model and a cluster to a complete plan: capture, candidates, search, and the plan's lines."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from autopar.capture.capture import Capture, capture
from autopar.capture.model_graph import ModelGraph
from autopar.cost.blocks import Readings
from autopar.cost.measured import measured_note
from autopar.cost.prediction import Prediction
from autopar.errors import PlanError, UsageError
from autopar.hardware.cluster import Cluster
from autopar.lower.supported import check_supported
from autopar.plan.agreement import check_agreement
from autopar.plan.decisions import (
    MESH_AXES,
    ClusterReference,
    Mesh,
    ModelReference,
    Plan,
    Precision,
    ScheduleName,
)
from autopar.planner.check import DEFAULT_OPTIMIZER, DTYPES, predict_plan
from autopar.planner.compose import compose_plan
from autopar.planner.explain_infeasible import no_candidate, nothing_fits
from autopar.planner.model_choices import ModelChoices
from autopar.planner.pins import pinned_first_blocks
from autopar.planner.request import (
    BaselineResult,
    PlanRequest,
    PlanResult,
    RunnerUp,
    SearchStatistics,
)
from autopar.solve.candidate import Alternative, BaselineFound, Family, Job
from autopar.solve.candidates import OuterPins, Space, candidates, divisors, families, meshes
from autopar.solve.search import search

_SAMPLES_PER_DEVICE = 32
_MOST_SAMPLES = 1024

Progress = Callable[[str], None]


def make_plan(
    request: PlanRequest, progress: Progress | None = None, captured: Capture | None = None
) -> PlanResult:
    """The plan of least predicted step time within the constraints.

    Args:
        request: what is asked for.
        progress: told, in a few words, what is being done.
        captured: the model, if it has been captured in the precision before.

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
    assert settled.precision is not None
    captured = captured or capture(request.source, DTYPES[settled.precision])
    assert captured.dtype == DTYPES[settled.precision]
    choices = ModelChoices(captured, request.cluster, settled.precision, settled)
    first_blocks = pinned_first_blocks(settled, choices.graph)
    capture_s = time.monotonic() - started

    assert settled.global_batch is not None and settled.optimizer is not None
    job = Job(
        request.cluster,
        settled.precision,
        settled.optimizer,
        settled.global_batch,
        request.memory_limit_bytes or request.cluster.device.memory_bytes,
        first_blocks,
    )
    legal, space = legal_families(choices, settled, request.cluster)
    found = search(
        choices,
        legal,
        space,
        job,
        num_alternatives=max(0, request.top - 1),
        with_baselines=request.with_baselines,
        time_limit_s=request.time_limit_s,
        progress=progress,
    )
    if found is None:
        raise nothing_fits(choices, legal, space, job, settled)
    plan = compose_plan(settled, found.best, choices, request.cluster)
    prediction = _checked_prediction(plan, captured, request.cluster, job, choices.readings)
    step_s = prediction.step_time_s
    bound_s = min(found.bound_s, step_s)
    gap = 0.0 if found.gap <= 0 else 1 - bound_s / step_s
    return PlanResult(
        plan=plan,
        status="optimal" if gap <= 1e-9 else "feasible",
        gap=gap,
        bound_s=bound_s if gap > 0 else step_s,
        prediction=prediction,
        alternatives=tuple(_runner_up(a) for a in found.alternatives),
        search=SearchStatistics(
            wall_s=time.monotonic() - started,
            capture_s=capture_s,
            solve_s=time.monotonic() - started - capture_s,
            num_candidates=found.num_candidates,
            num_solved=found.num_solved,
        ),
        notes=(*notes, *filter(None, [_measured(plan, captured, request.cluster, tell)])),
        baselines=tuple(_baseline(baseline, step_s) for baseline in found.baselines),
    )


def _measured(plan: Plan, captured: Capture, cluster: Cluster, tell: Progress) -> str:
    assert plan.micro_batch is not None
    note = measured_note(captured.at(plan.micro_batch), cluster.device)
    if note:
        tell(note)
    return note


def settle(request: PlanRequest) -> tuple[Plan, tuple[str, ...]]:
    """The constraints with model, cluster, batch, optimiser and precision filled in; and the defaults taken.

    Raises:
        UsageError: the device cannot compute in the precision asked for.
    """
    constraints, device, notes = request.constraints, request.cluster.device, []
    precision = constraints.precision or request.precision
    if precision is None:
        precision = Precision(device.default_precision)
    elif not device.supports(precision):
        raise UsageError(
            f"{device.name} has no units for {precision}; choose one of {', '.join(device.peak_flops_per_s)}"
        )
    global_batch = constraints.global_batch or request.global_batch
    if global_batch is None:
        global_batch = _default_global_batch(constraints, request.cluster.num_devices)
        notes.append(f"global batch: {global_batch} samples (choose with --batch)")
    return (
        replace(
            constraints,
            model=ModelReference(request.source.target, dict(request.source.args)),
            cluster=ClusterReference(device.name, request.cluster.nodes, request.cluster.devices_per_node),
            global_batch=global_batch,
            precision=Precision(precision),
            optimizer=constraints.optimizer or request.optimizer or DEFAULT_OPTIMIZER,
        ),
        tuple(notes),
    )


def legal_families(
    choices: ModelChoices, settled: Plan, cluster: Cluster
) -> tuple[tuple[Family, ...], Space]:
    """Every setting of degrees and micro-batch that the model, the cluster and the constraints allow, and how
    each may be run.

    Raises:
        InfeasibleError: there is none; lists the legal degrees.
        PlanError: the constraints hold at no tensor degree.
    """
    pins = outer_pins(settled)
    degrees, problem = legal_tensor_degrees(choices, settled, cluster)
    if problem is not None and not degrees:
        raise problem
    assert settled.global_batch is not None
    space = Space(
        pins, choices.num_blocks, cluster.nodes, cluster.devices_per_node, _Support(choices.graph).allows
    )
    legal = tuple(meshes(cluster.num_devices, choices.num_blocks, degrees, pins))
    found = tuple(
        family
        for family in families(settled.global_batch, legal, pins)
        if next(candidates(family, space), None) is not None
    )
    if not found:
        raise no_candidate(settled, pins, degrees, choices.num_blocks, cluster)
    return found, space


def outer_pins(settled: Plan) -> OuterPins:
    """The outer decisions that constraints fix."""
    return OuterPins(
        settled.mesh,
        settled.micro_batch,
        settled.zero,
        settled.schedule,
        settled.virtual,
        len(settled.stages) if settled.stages is not None else None,
        settled.shard_group,
        settled.offloaded if settled.offload is not None else None,
    )


class _Support:
    """Which outer decisions go together, as the lowering sees it."""

    def __init__(self, graph: ModelGraph) -> None:
        self._graph = graph
        self._known: dict[object, bool] = {}

    def allows(self, schedule: ScheduleName, virtual: int, zero: int, offload: tuple[str, ...]) -> bool:
        """Whether a plan with these decisions can be run."""
        key = (schedule, virtual, zero, offload)
        if key not in self._known:
            plan = Plan(schedule=schedule, virtual=virtual, zero=zero, offload=",".join(offload) or "none")
            try:
                check_agreement(plan)
                check_supported(plan, self._graph)
                self._known[key] = True
            except PlanError:
                self._known[key] = False
        return self._known[key]


def legal_tensor_degrees(
    choices: ModelChoices, settled: Plan, cluster: Cluster
) -> tuple[tuple[int, ...], PlanError | None]:
    """Degrees inside a node that divide something of the model, and why the constraints forbid others."""
    problem: PlanError | None = None
    degrees = [1]
    for degree in divisors(cluster.num_devices):
        is_pinned = settled.mesh.tensor == degree
        if degree == 1 or (cluster.devices_per_node % degree and not is_pinned):
            continue
        try:
            if choices.shards_anything(degree):
                degrees.append(degree)
        except PlanError as refused:
            problem = problem or refused
    if problem is not None and settled.mesh.tensor not in (None, 1) and settled.mesh.tensor not in degrees:
        raise problem
    return tuple(degrees), problem


def _default_global_batch(constraints: Plan, num_devices: int) -> int:
    """32 samples a device, fewer where that makes more than 1,024; a multiple of what is pinned."""
    per_device = min(_SAMPLES_PER_DEVICE, max(1, _MOST_SAMPLES // num_devices))
    unit = (constraints.micro_batch or 1) * (constraints.mesh.data or 1)
    wanted = per_device * num_devices
    return wanted if wanted % unit == 0 else max(1, wanted // unit) * unit


def _checked_prediction(
    plan: Plan, captured: Capture, cluster: Cluster, job: Job, readings: Readings
) -> Prediction:
    assert plan.micro_batch is not None
    prediction = predict_plan(plan, captured.at(plan.micro_batch), cluster, job.memory_limit_bytes, readings)
    assert prediction.fits, "the plan as written does not fit although the solution does"
    return prediction


def _runner_up(alternative: Alternative) -> RunnerUp:
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
