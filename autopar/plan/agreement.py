"""Checks between the keys of one plan: those that need neither the model nor the devices' cost model.

What needs the model (names, dims that do not divide, its fingerprint) is checked where plan and model meet.
"""

from __future__ import annotations

from math import prod

from autopar.plan.decisions import MESH_AXES, Plan, ScheduleName

_ONE_STAGE = (ScheduleName.GPIPE, ScheduleName.ONE_F_ONE_B, ScheduleName.ZERO_BUBBLE)


def check_agreement(plan: Plan) -> None:
    """Raises a ``PlanError`` where two decisions of a plan, whole or partial, cannot both hold."""
    _check_mesh(plan)
    _check_batch(plan)
    _check_shard_group(plan)
    _check_offload(plan)
    _check_virtual(plan)
    _check_stages(plan)


def _check_mesh(plan: Plan) -> None:
    degrees = {axis: getattr(plan.mesh, axis) for axis in MESH_AXES}
    given = {axis: degree for axis, degree in degrees.items() if degree is not None}
    if plan.cluster is None or not given:
        return
    product, num_devices = prod(given.values()), plan.cluster.num_devices
    text = " x ".join(f"{axis} {degree}" for axis, degree in given.items())
    if len(given) == len(MESH_AXES) and product != num_devices:
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


def _check_shard_group(plan: Plan) -> None:
    group, data = plan.shard_group, plan.mesh.data
    if group is None or data is None or data % group == 0:
        return
    divisors = [d for d in range(1, data + 1) if data % d == 0]
    closest = min(divisors, key=lambda d: (abs(d - group), -d))
    raise plan.error(
        _last_line(plan, ["mesh.data", "shard_group"]),
        f"shard_group {group} does not divide mesh.data {data}; the data axis is a whole number of groups: "
        f"write shard_group: {closest}",
    )


def _check_offload(plan: Plan) -> None:
    if plan.offload is None or "parameters" not in plan.offload.split(",") or plan.zero is None:
        return
    levels = plan.zero if isinstance(plan.zero, tuple) else (plan.zero,)
    if set(levels) != {3}:
        raise plan.error(
            _last_line(plan, ["offload", "zero"]),
            f"offload of parameters needs zero: 3, but zero is {min(levels)}; only there each rank has a "
            "shard of its own to move: write zero: 3, or offload: optimizer",
        )


def _check_virtual(plan: Plan) -> None:
    virtual, schedule = plan.virtual, plan.schedule
    if virtual is None or schedule is None:
        return
    key = _last_line(plan, ["pipeline.schedule", "pipeline.virtual"])
    if schedule in _ONE_STAGE and virtual > 1:
        raise plan.error(
            key,
            f"schedule {schedule} runs one stage on each rank, but virtual is {virtual}; "
            "write virtual: 1, or schedule: interleaved",
        )
    if schedule is ScheduleName.INTERLEAVED and virtual < 2:
        raise plan.error(
            key,
            "schedule interleaved runs several stages on each rank, but virtual is 1; "
            "write virtual: 2 or more, or schedule: 1f1b",
        )
    if schedule is ScheduleName.ZBV and virtual != 2:
        raise plan.error(
            key,
            f"schedule zbv runs two stages on each rank, down the ranks and up again, but virtual is "
            f"{virtual}; write virtual: 2",
        )


def _check_stages(plan: Plan) -> None:
    virtual = plan.virtual
    if virtual is None and plan.schedule is not None:
        virtual = 1 if plan.schedule in _ONE_STAGE else 2 if plan.schedule is ScheduleName.ZBV else None
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
    wanted = plan.mesh.pipeline * (virtual or 1)
    fits = num_stages == wanted if virtual is not None else num_stages % plan.mesh.pipeline == 0
    if not fits:
        times = f" x virtual {virtual}" if virtual and virtual > 1 else ""
        raise plan.error(
            "pipeline.stages",
            f"there are {num_stages} stages, but mesh.pipeline {plan.mesh.pipeline}{times} asks for "
            f"{wanted}; move the blocks into that many lists, or change mesh.pipeline",
        )


def _last_line(plan: Plan, keys: list[str]) -> str:
    """The key that stands lowest in the file, or that came from elsewhere: the one written last."""
    return max(keys, key=lambda key: (key in plan.sources, plan.places.get(key, (0, 0))))


def _nearest_multiple(number: int, factor: int) -> int:
    return max(1, round(number / factor)) * factor
