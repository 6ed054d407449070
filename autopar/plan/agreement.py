"""Checks between the keys of one plan: those that need neither the model nor the devices' cost model.

What needs the model (names, dims that do not divide, its fingerprint) is checked where plan and model meet.
"""

from __future__ import annotations

from math import prod

from autopar.plan.decisions import Plan, ScheduleName

_AXES = ("pipeline", "data", "tensor")


def check_agreement(plan: Plan) -> None:
    """Raises a ``PlanError`` where two decisions of a plan, whole or partial, cannot both hold."""
    _check_mesh(plan)
    _check_batch(plan)
    _check_stages(plan)


def _check_mesh(plan: Plan) -> None:
    degrees = {axis: getattr(plan.mesh, axis) for axis in _AXES}
    given = {axis: degree for axis, degree in degrees.items() if degree is not None}
    if plan.cluster is None or not given:
        return
    product, num_devices = prod(given.values()), plan.cluster.num_devices
    text = " x ".join(f"{axis} {degree}" for axis, degree in given.items())
    if len(given) == len(_AXES) and product != num_devices:
        raise plan.error(
            _last_line(plan, [f"mesh.{axis}" for axis in given]),
            f"the mesh {text} is {product} devices, but the cluster has {num_devices}; "
            "change a degree so that the product is the number of devices, or delete one for the solver",
        )
    if num_devices % product:
        raise plan.error(
            _last_line(plan, [f"mesh.{axis}" for axis in given]),
            f"the mesh {text} does not divide the {num_devices} devices of the cluster; "
            f"use degrees whose product divides {num_devices}",
        )


def _check_batch(plan: Plan) -> None:
    if plan.global_batch is None:
        return
    parts = {"batch.micro": plan.micro_batch, "mesh.data": plan.mesh.data}
    given = {key: value for key, value in parts.items() if value is not None}
    product = prod(given.values())
    if plan.global_batch % product:
        text = " x ".join(f"{key} {value}" for key, value in given.items())
        raise plan.error(
            next(iter(given)),
            f"{text} = {product} does not divide batch.global {plan.global_batch}; a step is a whole number "
            f"of micro-batches: change one, e.g. global: {_nearest_multiple(plan.global_batch, product)}",
        )


def _check_stages(plan: Plan) -> None:
    virtual = plan.virtual or 1
    if virtual > 1 and plan.schedule in (
        ScheduleName.GPIPE,
        ScheduleName.ONE_F_ONE_B,
        ScheduleName.ZERO_BUBBLE,
    ):
        raise plan.error(
            "pipeline.virtual",
            f"schedule {plan.schedule} runs one stage on each rank, but virtual is {virtual}; "
            "write virtual: 1, or schedule: interleaved",
        )
    if plan.stages is None:
        return
    num_stages = len(plan.stages)
    if isinstance(plan.zero, tuple) and len(plan.zero) != num_stages:
        raise plan.error(
            "zero",
            f"zero lists {len(plan.zero)} levels for {num_stages} stages; write one level for each stage, "
            "or one number for all",
        )
    if plan.mesh.pipeline is None:
        return
    wanted = plan.mesh.pipeline * virtual
    fits = num_stages == wanted if plan.virtual is not None else num_stages % plan.mesh.pipeline == 0
    if not fits:
        times = f" x virtual {virtual}" if virtual > 1 else ""
        raise plan.error(
            "pipeline.stages",
            f"there are {num_stages} stages, but mesh.pipeline {plan.mesh.pipeline}{times} asks for "
            f"{wanted}; move the blocks into that many lists, or change mesh.pipeline",
        )


def _last_line(plan: Plan, keys: list[str]) -> str:
    """The key that stands lowest in the file, or that came from elsewhere: the one written last."""
    return max(keys, key=lambda key: (key in plan.sources, plan.lines.get(key, 0)))


def _nearest_multiple(number: int, factor: int) -> int:
    return max(1, round(number / factor)) * factor
