"""Costing of a complete plan as it would run: bind it to the model, cost every block, play the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from autopar.capture.capture import Capture, capture
from autopar.capture.model_graph import ModelGraph
from autopar.capture.target import ModelSource
from autopar.cost.blocks import Readings, block_choice, frozen_parameters
from autopar.cost.layout import Layout
from autopar.cost.measured import measured_note
from autopar.cost.prediction import Prediction
from autopar.cost.step import predict
from autopar.errors import InfeasibleError
from autopar.hardware.cluster import Cluster
from autopar.lower.resolve import ResolvedPlan, check_complete, resolve
from autopar.plan.decisions import MESH_AXES, Plan, Precision, ScheduleName
from autopar.planner.several_blocks import carried_bytes, shared_parameters
from autopar.units import format_bytes

DTYPES = {
    Precision.BF16: torch.bfloat16,
    Precision.FP16: torch.float16,
    Precision.FP32: torch.float32,
}

DEFAULT_OPTIMIZER = "adamw"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a plan is predicted to do.

    Attributes:
        warnings: what people should know, e.g. that the devices are others than planned for.
        infeasible: names the fullest stage and what it misses, where the plan does not fit; else None.
        notes: what the prediction rests on, where that is more than the cost model's usual numbers.
    """

    prediction: Prediction
    warnings: tuple[str, ...]
    infeasible: InfeasibleError | None
    notes: tuple[str, ...] = ()


def check_plan(
    plan: Plan,
    source: ModelSource,
    cluster: Cluster,
    *,
    memory_limit_bytes: int | None = None,
    captured: Capture | None = None,
) -> CheckResult:
    """Validates a complete plan against its model and costs it on a cluster. Needs no solver.

    Args:
        memory_limit_bytes: of a device; None: all that it has.
        captured: the model, if it has been captured before.

    Raises:
        PlanError: the plan is incomplete, or wrong for the model or the cluster.
        CaptureError: the model cannot be captured.
    """
    captured = capture_for(plan, source, captured)
    assert plan.micro_batch is not None
    graph = captured.at(plan.micro_batch)
    limit_bytes = memory_limit_bytes or cluster.device.memory_bytes
    prediction = predict_plan(plan, graph, cluster, limit_bytes, Readings(cluster))
    note = measured_note(graph, cluster.device)
    notes = (note,) if note else ()
    return CheckResult(prediction, _warnings(plan, cluster), too_large(prediction), notes)


def capture_for(plan: Plan, source: ModelSource, known: Capture | None = None) -> Capture:
    """The model in the precision of a plan.

    Args:
        known: a capture of the model, taken if it is in that precision.

    Raises:
        PlanError: the plan is incomplete.
        CaptureError: the model cannot be captured.
    """
    check_complete(plan)
    assert plan.precision is not None
    wanted = DTYPES[plan.precision]
    return known if known is not None and known.dtype == wanted else capture(source, wanted)


def predict_plan(
    plan: Plan, graph: ModelGraph, cluster: Cluster, memory_limit_bytes: int, readings: Readings
) -> Prediction:
    """What a complete plan does, from what its resolved blocks cost."""
    return predict(resolved_layout(resolve(plan, graph), cluster, readings), cluster, memory_limit_bytes)


def resolved_layout(resolved: ResolvedPlan, cluster: Cluster, readings: Readings) -> Layout:
    """The layout that a resolved plan says."""
    plan, graph = resolved.plan, resolved.graph
    mesh = plan.mesh
    assert mesh.pipeline and mesh.data and mesh.tensor and plan.micro_batch and plan.precision
    frozen = frozen_parameters(graph)
    choices = [
        block_choice(
            decision.block,
            decision.sharding,
            decision.recompute,
            cluster,
            plan.micro_batch,
            input_word=decision.input_word,
            output_word=decision.output_word,
            overrides=decision.overrides,
            frozen=frozen,
            readings=readings,
            tensor_stride=mesh.stride("tensor"),
        )
        for decision in resolved.blocks
    ]
    carried = carried_bytes(graph)
    zero = plan.zero if isinstance(plan.zero, tuple) else (plan.zero or 0,) * resolved.num_stages
    return Layout(
        pipeline=mesh.pipeline,
        data=mesh.data,
        tensor=mesh.tensor,
        micro_batch=plan.micro_batch,
        num_micro_batches=plan.num_micro_batches,
        schedule=plan.schedule or ScheduleName.ONE_F_ONE_B,
        virtual=plan.virtual or 1,
        zero=zero,
        precision=plan.precision,
        optimizer=plan.optimizer or DEFAULT_OPTIMIZER,
        stages=tuple(tuple(choices[index] for index in stage) for stage in resolved.stages),
        shared=shared_parameters(graph, resolved.parameter_placements, mesh.tensor),
        carried_bytes=tuple(carried[stage[-1]] for stage in resolved.stages[:-1]),
        order=mesh.order or MESH_AXES,
        shard_group=plan.shard_group or mesh.data,
        offload=plan.offloaded,
    )


def too_large(prediction: Prediction) -> InfeasibleError | None:
    """The error of a plan that does not fit: which stage, and by how much."""
    if prediction.fits:
        return None
    if prediction.peak_memory_bytes > prediction.memory_limit_bytes:
        return _missing(
            "memory",
            [stage.memory.total_bytes for stage in prediction.stages],
            prediction.memory_limit_bytes,
            "needs {needed}, {missing} more than the {limit} of a device; halve batch.micro, turn recompute "
            "on, raise zero, or give the stage fewer blocks",
        )
    return _missing(
        "host memory",
        [stage.memory.host_bytes for stage in prediction.stages],
        prediction.host_limit_bytes,
        "offload puts {needed} there for each device, {missing} more than its share of {limit}; offload "
        "less, raise zero, or use fewer devices per node",
    )


def _missing(what: str, stage_bytes: Sequence[int], limit_bytes: int, text: str) -> InfeasibleError:
    """The error of the stage that needs most."""
    needed_bytes = max(stage_bytes)
    binding = f"{what} of stage {stage_bytes.index(needed_bytes)}"
    missing_bytes = needed_bytes - limit_bytes
    told = text.format(
        needed=format_bytes(needed_bytes),
        missing=format_bytes(missing_bytes),
        limit=format_bytes(limit_bytes),
    )
    return InfeasibleError(f"{binding}: {told}", binding=binding, shortfall_bytes=missing_bytes)


def _warnings(plan: Plan, cluster: Cluster) -> tuple[str, ...]:
    planned = plan.cluster
    if planned is None:
        return ()
    device, here = cluster.device, (cluster.device.name, cluster.nodes, cluster.devices_per_node)
    is_same_device = planned.device in (device.name, device.path)
    if is_same_device and (planned.nodes, planned.devices_per_node) == here[1:]:
        return ()
    return (
        f"the plan was made for {planned.nodes} x {planned.devices_per_node} {planned.device}; "
        f"it is costed for {here[1]} x {here[2]} {here[0]}",
    )
