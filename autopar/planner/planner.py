"""From a model and a cluster to a complete plan: capture, candidates, search, and the plan's lines."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from autopar.capture.capture import Capture, capture
from autopar.cost.blocks import Readings
from autopar.cost.measured import measured_note
from autopar.cost.prediction import Prediction
from autopar.errors import PlanError, UsageError
from autopar.hardware.cluster import Cluster
from autopar.plan.decisions import ClusterReference, Mesh, ModelReference, Plan, Precision
from autopar.planner.check import DEFAULT_OPTIMIZER, DTYPES, predict_plan
from autopar.planner.compose import compose_plan
from autopar.planner.explain_infeasible import no_candidate, nothing_fits
from autopar.planner.model_choices import ModelChoices
from autopar.planner.pins import pinned_first_blocks
from autopar.planner.request import PlanRequest, PlanResult, RunnerUp, SearchStatistics
from autopar.solve.candidate import Alternative, Candidate, Job
from autopar.solve.candidates import OuterPins, candidates, divisors, meshes
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
    found_candidates = legal_candidates(choices, settled, request.cluster)
    found = search(
        choices,
        found_candidates,
        job,
        num_alternatives=max(0, request.top - 1),
        time_limit_s=request.time_limit_s,
        progress=progress,
    )
    if found is None:
        raise nothing_fits(choices, found_candidates, job, settled)
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


def legal_candidates(choices: ModelChoices, settled: Plan, cluster: Cluster) -> tuple[Candidate, ...]:
    """Every setting of mesh, micro-batch and ZeRO that the model, the cluster and the constraints allow.

    Raises:
        InfeasibleError: there is none; lists the legal degrees.
        PlanError: the constraints hold at no tensor degree.
    """
    pins = OuterPins(
        settled.mesh,
        settled.micro_batch,
        settled.zero,
        settled.schedule,
        len(settled.stages) // (settled.virtual or 1) if settled.stages is not None else None,
    )
    degrees, problem = legal_tensor_degrees(choices, settled, cluster)
    if problem is not None and not degrees:
        raise problem
    assert settled.global_batch is not None
    found = tuple(
        candidates(settled.global_batch, meshes(cluster.num_devices, choices.num_blocks, degrees, pins), pins)
    )
    if not found:
        raise no_candidate(settled, pins, degrees, choices.num_blocks, cluster)
    return found


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
        mesh=Mesh(candidate.pipeline, candidate.data, candidate.tensor),
        micro_batch=candidate.micro_batch,
        zero=level,
        step_time_s=prediction.step_time_s if prediction else None,
        peak_memory_bytes=prediction.peak_memory_bytes if prediction else None,
        why_not=alternative.why_not,
    )
