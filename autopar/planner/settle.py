"""What is asked for with every default filled in: device, batch, precision, optimiser."""

from __future__ import annotations

from dataclasses import replace

from autopar.errors import UsageError
from autopar.plan.decisions import ClusterReference, ModelReference, Plan, Precision
from autopar.planner.check import DEFAULT_OPTIMIZER
from autopar.planner.request import PlanRequest

_SAMPLES_PER_DEVICE = 32
_MOST_SAMPLES = 1024


def settle(request: PlanRequest) -> tuple[Plan, tuple[str, ...]]:
    """The constraints with model, cluster, batch, optimiser and precision filled in; and the defaults taken.

    Raises:
        PlanError: the device cannot compute in the precision that the constraints fix.
        UsageError: nor in that of the request.
    """
    constraints, device, notes = request.constraints, request.cluster.device, []
    precision = constraints.precision or request.precision
    if precision is None:
        precision = Precision(device.default_precision)
    elif not device.supports(precision):
        problem = (
            f"{device.name} has no units for {precision}; choose one of {', '.join(device.peak_flops_per_s)}"
        )
        if constraints.precision is None:
            raise UsageError(problem)
        raise constraints.error("precision", problem)
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


def _default_global_batch(constraints: Plan, num_devices: int) -> int:
    """32 samples a device, fewer where that makes more than 1,024; a multiple of what is pinned."""
    per_device = min(_SAMPLES_PER_DEVICE, max(1, _MOST_SAMPLES // num_devices))
    unit = (constraints.micro_batch or _least(constraints, "batch.micro")) * (
        constraints.mesh.data or _least(constraints, "mesh.data")
    )
    wanted = per_device * num_devices
    return wanted if wanted % unit == 0 else max(1, wanted // unit) * unit


def _least(constraints: Plan, key: str) -> int:
    return max(1, constraints.bounds[key].least) if key in constraints.bounds else 1
