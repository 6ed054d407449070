"""Checks between the keys of one plan: those that need neither the model nor the devices' cost model.

What needs the model (names, dims that do not divide, its fingerprint) is checked where plan and model meet.
An error stands at the line that was written last, and names the lines that it clashes with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product as combinations
from math import prod

from autopar.errors import PlanError
from autopar.plan.bounds import Bound, size_of_stage
from autopar.plan.decisions import MESH_AXES, Plan, ScheduleName

_ONE_STAGE = (ScheduleName.GPIPE, ScheduleName.ONE_F_ONE_B, ScheduleName.ZERO_BUBBLE)
_FREE = Bound(1)


def check_agreement(plan: Plan) -> None:
    """Raises a ``PlanError`` where decisions of a plan, whole or partial, cannot hold together."""
    found = list(disagreements(plan))
    if found:
        raise PlanError.of(found)


def disagreements(plan: Plan) -> Iterator[PlanError]:
    """Every pair of decisions that cannot both hold."""
    checks: tuple[Callable[[Plan], Iterator[PlanError]], ...] = (
        _mesh,
        _batch,
        _shard_group,
        _offload,
        _virtual,
        _stages,
        _stage_sizes,
    )
    for check in checks:
        yield from check(plan)


def _clash(plan: Plan, keys: list[str], message: str, at: str = "") -> PlanError:
    """An error at the key that was written last (or ``at``), which names the places of the others."""
    at = at or _last_line(plan, keys)
    here = plan.where(at)
    others = [
        f"{key} at {plan.where(key)}" for key in keys if key != at and plan.where(key) not in ("", here)
    ]
    return plan.error(at, f"{message} (it clashes with {' and '.join(others)})" if others else message)


def _mesh(plan: Plan) -> Iterator[PlanError]:
    degrees = {axis: getattr(plan.mesh, axis) for axis in MESH_AXES}
    given = {axis: degree for axis, degree in degrees.items() if degree is not None}
    keys = [f"mesh.{axis}" for axis in given]
    bounds = {
        key: str(plan.bounds[key]) for key in (f"mesh.{axis}" for axis in MESH_AXES) if key in plan.bounds
    }
    if plan.cluster is None or not (keys or bounds):
        return
    # Of a file and the devices that a flag chose, it is the file that has a line to look at.
    at = _last_line(plan, [*keys, *bounds]) if "cluster" in plan.sources else ""
    product, num_devices = prod(given.values()), plan.cluster.num_devices
    text = " x ".join(f"{axis} {degree}" for axis, degree in given.items())
    if len(given) == len(MESH_AXES) and product != num_devices:
        yield _clash(
            plan,
            [*keys, "cluster"],
            f"the mesh {text} is {product} devices, but the cluster has {num_devices}; "
            "change a degree so that the product is the number of devices, or delete one for the solver",
            at,
        )
    elif num_devices % product:
        yield _clash(
            plan,
            [*keys, "cluster"],
            f"the mesh {text} does not divide the {num_devices} devices of the cluster; "
            f"use degrees whose product divides {num_devices}",
            at,
        )
    elif bounds and not _fills(plan, num_devices):
        told = [*(f"{axis} {degree}" for axis, degree in given.items()), *map(" ".join, bounds.items())]
        yield _clash(
            plan,
            [*keys, *bounds, "cluster"],
            f"no mesh of {num_devices} devices has {', '.join(told)}: the degrees multiply to {num_devices}; "
            "widen a bound, or delete one",
            at,
        )


def _fills(plan: Plan, num_devices: int) -> bool:
    """Whether degrees within what is given multiply to the devices."""
    divisors = _divisors(num_devices)
    options = []
    for axis in MESH_AXES[:2]:
        degree, bound = getattr(plan.mesh, axis), plan.bounds.get(f"mesh.{axis}", _FREE)
        options.append([d for d in divisors if (degree == d if degree else bound.holds(d))])
    tensor, last = plan.mesh.tensor, plan.bounds.get(f"mesh.{MESH_AXES[2]}", _FREE)
    return any(
        num_devices % (p * d) == 0
        and (num_devices // (p * d) == tensor if tensor else last.holds(num_devices // (p * d)))
        for p, d in combinations(*options)
    )


def _batch(plan: Plan) -> Iterator[PlanError]:
    if plan.global_batch is None:
        return
    parts = {"batch.micro": plan.micro_batch, "mesh.data": plan.mesh.data}
    given = {key: value for key, value in parts.items() if value is not None}
    product = prod(given.values())
    keys = [*given, "batch.global"]
    if plan.global_batch % product:
        text = " x ".join(f"{key} {value}" for key, value in given.items())
        total = f" = {product}" if len(given) > 1 else ""
        yield _clash(
            plan,
            keys,
            f"{text}{total} does not divide batch.global {plan.global_batch}; a step is a whole number "
            f"of micro-batches: change one, e.g. global: {_nearest_multiple(plan.global_batch, product)}",
            "" if plan.sources else keys[0],
        )
    elif (bound := plan.bounds.get("batch.micro")) is not None:
        samples = plan.global_batch // product
        if not any(bound.holds(size) for size in _divisors(samples)):
            yield _clash(
                plan,
                [*keys, "batch.micro"],
                f"no batch.micro of {bound} divides the {samples} samples of a data rank; widen the bound, "
                "or change batch.global",
            )


def _shard_group(plan: Plan) -> Iterator[PlanError]:
    group, data, bound = plan.shard_group, plan.mesh.data, plan.bounds.get("shard_group")
    if data is None:
        return
    if group is None:
        if bound is not None and not any(bound.holds(size) for size in _divisors(data)):
            yield _clash(
                plan,
                ["mesh.data", "shard_group"],
                f"no shard_group of {bound} divides mesh.data {data}; widen the bound",
            )
        return
    if data % group:
        closest = min(_divisors(data), key=lambda d: (abs(d - group), -d))
        yield _clash(
            plan,
            ["mesh.data", "shard_group"],
            f"shard_group {group} does not divide mesh.data {data}; the data axis is a whole number of "
            f"groups: write shard_group: {closest}",
        )


def _offload(plan: Plan) -> Iterator[PlanError]:
    if plan.offload is None or "parameters" not in plan.offload.split(","):
        return
    bound = plan.bounds.get("zero")
    if plan.zero is None and (bound is None or bound.holds(3)):
        return
    level = bound if plan.zero is None else min(plan.zero) if isinstance(plan.zero, tuple) else plan.zero
    if level != 3:
        yield _clash(
            plan,
            ["offload", "zero"],
            f"offload of parameters needs zero: 3, but zero is {level}; only there each rank has a "
            "shard of its own to move: write zero: 3, or offload: optimizer",
        )


def _virtual(plan: Plan) -> Iterator[PlanError]:
    virtual: int | Bound | None = plan.virtual or plan.bounds.get("pipeline.virtual")
    schedule = plan.schedule
    if virtual is None or schedule is None:
        return
    bound = virtual if isinstance(virtual, Bound) else Bound(virtual, virtual)
    keys = ["pipeline.schedule", "pipeline.virtual"]
    if schedule in _ONE_STAGE and not bound.holds(1):
        yield _clash(
            plan,
            keys,
            f"schedule {schedule} runs one stage on each rank, but virtual is {virtual}; "
            "write virtual: 1, or schedule: interleaved",
        )
    if schedule is ScheduleName.INTERLEAVED and bound.most is not None and bound.most < 2:
        yield _clash(
            plan,
            keys,
            f"schedule interleaved runs several stages on each rank, but virtual is {virtual}; "
            "write virtual: 2 or more, or schedule: 1f1b",
        )
    if schedule is ScheduleName.ZBV and not bound.holds(2):
        yield _clash(
            plan,
            keys,
            f"schedule zbv runs two stages on each rank, down the ranks and up again, but virtual is "
            f"{virtual}; write virtual: 2",
        )


def _stages(plan: Plan) -> Iterator[PlanError]:
    virtual = plan.virtual
    if virtual is None and plan.schedule is not None:
        virtual = 1 if plan.schedule in _ONE_STAGE else 2 if plan.schedule is ScheduleName.ZBV else None
    if plan.stages is None:
        return
    num_stages = len(plan.stages)
    if isinstance(plan.zero, tuple) and len(plan.zero) != num_stages:
        yield _clash(
            plan,
            ["zero", "pipeline.stages"],
            f"zero lists {len(plan.zero)} levels for {num_stages} stages; write one level for each stage, "
            "or one number for all",
        )
    if plan.mesh.pipeline is None:
        return
    wanted = plan.mesh.pipeline * (virtual or 1)
    fits = num_stages == wanted if virtual is not None else num_stages % plan.mesh.pipeline == 0
    if not fits:
        times = f" x virtual {virtual}" if virtual and virtual > 1 else ""
        there = "there is 1 stage" if num_stages == 1 else f"there are {num_stages} stages"
        yield plan.error(
            "pipeline.stages",
            f"{there}, but mesh.pipeline {plan.mesh.pipeline}{times} asks for {wanted}; move the blocks into"
            " that many lists, or change mesh.pipeline" + _clashing(plan, "mesh.pipeline", "pipeline.stages"),
        )


def _clashing(plan: Plan, key: str, here: str) -> str:
    where = plan.where(key)
    return f" (it clashes with {key} at {where})" if where and where != plan.where(here) else ""


def _stage_sizes(plan: Plan) -> Iterator[PlanError]:
    for number, size in enumerate(plan.stage_sizes):
        for other in plan.stage_sizes[:number]:
            both = size.names_some_of(other)
            if both and size.bound.meet(other.bound) is None:
                yield _clash(
                    plan,
                    [f"pipeline.blocks_per_stage.{one.stages}" for one in (other, size)],
                    f"stage {both} cannot hold {other.bound} and {size.bound} blocks at once; change a line",
                )
    for stage, names in enumerate(plan.stages or ()):
        bound = size_of_stage(plan.stage_sizes, stage, len(plan.stages or ()))
        if names and bound is not None and not bound.holds(len(names)):
            yield _clash(
                plan,
                [f"pipeline.stages.{stage}", "pipeline.blocks_per_stage"],
                f"stage {stage} holds {len(names)} blocks, but blocks_per_stage allows {bound}; move blocks, "
                "or change the bound",
            )


def _last_line(plan: Plan, keys: list[str]) -> str:
    """The key that stands lowest in the file, or that came from elsewhere: the one written last."""
    return max(keys, key=lambda key: (key in plan.sources, plan.places.get(key, (0, 0))))


def _nearest_multiple(number: int, factor: int) -> int:
    return max(1, round(number / factor)) * factor


def _divisors(number: int) -> list[int]:
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})
