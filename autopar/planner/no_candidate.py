"""The error where no setting of the degrees and the micro-batch is legal: which pin, and what it may be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from autopar.errors import InfeasibleError
from autopar.plan.decisions import MESH_AXES, Mesh, Plan, ScheduleName
from autopar.solve.candidates import OuterPins, Space, candidates, divisors, families, meshes

_OF_TWO_OR_MORE = (ScheduleName.INTERLEAVED, ScheduleName.ZBV)


def no_candidate(settled: Plan, degrees: Sequence[int], space: Space) -> InfeasibleError:
    """Which pin leaves no legal setting, and the values that would be legal.

    Args:
        degrees: legal ones of the tensor axis.
    """
    pins, num_blocks, mesh = space.pins, space.num_blocks, settled.mesh
    num_devices = space.nodes * space.devices_per_node
    assert settled.global_batch is not None
    for axis, degree, legal in (
        ("tensor", mesh.tensor, tuple(degrees)),
        ("pipeline", pins.num_stages or mesh.pipeline, _up_to(num_blocks, num_devices)),
        ("data", mesh.data, divisors(num_devices)),
    ):
        if degree is not None and degree not in legal:
            return InfeasibleError(
                f"mesh.{axis} {degree} is not possible{_at(settled, f'mesh.{axis}')}: "
                f"{_why(axis, degree, num_devices, num_blocks)}; legal degrees are {_list(legal)}",
                binding=f"mesh.{axis}",
            )
    given = {"pipeline": pins.num_stages or mesh.pipeline, "data": mesh.data, "tensor": mesh.tensor}
    product = 1
    for degree in given.values():
        product *= degree or 1
    if num_devices % product or (all(given.values()) and product != num_devices):
        text = " x ".join(f"{axis} {degree}" for axis, degree in given.items() if degree)
        return InfeasibleError(
            f"mesh {text} cannot fill {num_devices} devices{_at(settled, 'mesh')}: the degrees must multiply "
            f"to {num_devices}; change or free one of them",
            binding="mesh",
        )
    legal_meshes = tuple(meshes(num_devices, num_blocks, degrees, pins))
    if not legal_meshes and (unfillable := _unfillable(settled, degrees, space)) is not None:
        return unfillable
    most_data = mesh.data or num_devices // product
    if pins.shard_group is not None and most_data % pins.shard_group:
        return InfeasibleError(
            f"shard_group {pins.shard_group} is not possible{_at(settled, 'shard_group')}: it divides no "
            f"data axis of up to {most_data} ranks; legal sizes are {_list(divisors(most_data))}",
            binding="shard_group",
        )
    if pins.schedule is not None or pins.virtual is not None:
        wanted = pins.virtual or (2 if pins.schedule in _OF_TWO_OR_MORE else 1)
        least = wanted * (mesh.pipeline or 1)
        if least > num_blocks:
            key = "pipeline.virtual" if pins.schedule is None else "pipeline.schedule"
            return InfeasibleError(
                f"{pins.schedule or 'a schedule'} with {wanted} stages on each of {mesh.pipeline or 1} ranks"
                f"{_at(settled, key)} needs {least} stages, and the model has {num_blocks} blocks, the least "
                "that a stage holds being one; choose 1f1b, or fewer ranks or stages",
                binding=key,
            )
    micro_batches = _micro_batches(settled.global_batch, legal_meshes)
    if pins.micro_batch is not None and micro_batches and pins.micro_batch not in micro_batches:
        return InfeasibleError(
            f"batch.micro {pins.micro_batch} does not divide the samples of a data rank"
            f"{_at(settled, 'batch.micro')}: batch.global is {settled.global_batch} and legal "
            f"micro-batches are {_list(micro_batches)}",
            binding="batch.micro",
        )
    if isinstance(pins.zero, tuple):
        return InfeasibleError(
            f"zero lists {len(pins.zero)} levels{_at(settled, 'zero')}, one for each stage, but no mesh of "
            f"{num_devices} devices has that many stages; write one level for all",
            binding="zero",
        )
    if settled.bounds or settled.stage_sizes:
        bounds = dict(settled.bounds)
        bounds |= {f"pipeline.blocks_per_stage.{size.stages}": size.bound for size in settled.stage_sizes}
        told = [f"{key} {bound}{_at(settled, key)}" for key, bound in bounds.items()]
        return InfeasibleError(
            f"nothing is within all bounds: {', '.join(told)}; a mesh of {num_devices} devices has at most "
            f"{num_blocks} stages (the model's blocks), tensor degrees {_list(tuple(degrees))}, and "
            f"micro-batches that divide batch.global {settled.global_batch}: widen a bound",
            binding=next(iter(bounds)),
        )
    if micro_batches and any(_freed(pins)):
        return _exclude_each_other(settled, degrees, space)
    return InfeasibleError(
        f"batch.global {settled.global_batch} does not divide over any mesh of {num_devices} devices with at "
        f"most {num_blocks} stages and tensor degrees {_list(tuple(degrees))}; use a multiple of "
        f"{num_devices}",
        binding="batch.global",
    )


def _unfillable(settled: Plan, degrees: Sequence[int], space: Space) -> InfeasibleError | None:
    """Each degree that is fixed would be possible, but what is left cannot be filled by the other axes; None
    where no other value of one of them could."""
    num_devices, fixed, others = space.nodes * space.devices_per_node, [], []
    for axis in MESH_AXES:
        degree = getattr(settled.mesh, axis)
        if degree is None:
            continue
        fixed.append(f"{axis} {degree}{_at(settled, f'mesh.{axis}')}")
        freed = _without_degree(space.pins, axis)
        legal = {getattr(mesh, axis) for mesh in meshes(num_devices, space.num_blocks, degrees, freed)}
        if legal:
            others.append(f"mesh.{axis} {_list(sorted(legal))}")
    if not others:
        return None
    within = "".join(
        f" within {key} {bound}" for key, bound in space.pins.bounds.items() if key.startswith("mesh.")
    )
    return InfeasibleError(
        f"mesh {' x '.join(fixed)} cannot fill {num_devices} devices{within}: the "
        f"model has {space.num_blocks} block{'s' if space.num_blocks > 1 else ''}, of which each stage needs "
        f"one, and legal tensor degrees are {_list(degrees)}; with the rest as it is, legal would be "
        f"{' or '.join(others)}",
        binding="mesh",
    )


def _micro_batches(global_batch: int, legal: Sequence[Mesh]) -> tuple[int, ...]:
    """What divides the samples of a data rank of some mesh."""
    shares = {global_batch // mesh.data for mesh in legal if mesh.data and global_batch % mesh.data == 0}
    return tuple(sorted({size for share in shares for size in divisors(share)}))


def _exclude_each_other(settled: Plan, degrees: Sequence[int], space: Space) -> InfeasibleError:
    """Constraints each of which is possible, and which leave nothing together."""
    num_devices = space.nodes * space.devices_per_node
    told, keys, free = [], [], []
    assert settled.global_batch is not None
    for key, value, freed in _freed(space.pins):
        keys.append(key)
        told.append(f"{key} {value}{_at(settled, key)}")
        rest = replace(space, pins=freed)
        legal = meshes(num_devices, space.num_blocks, degrees, freed)
        within = families(settled.global_batch, legal, freed)
        if any(next(candidates(family, rest), None) is not None for family in within):
            free.append(key)
    remedy = f"leave {' or '.join(free)} to the planner" if free else "leave more of them to the planner"
    return InfeasibleError(
        f"no mesh of {num_devices} devices goes with all of {', '.join(told)}, and batch.global "
        f"{settled.global_batch}, for a model of {space.num_blocks} blocks with tensor degrees "
        f"{_list(degrees)}; {remedy}",
        binding=(free or keys)[0],
    )


def _freed(pins: OuterPins) -> Iterator[tuple[str, object, OuterPins]]:
    """Each decision that is fixed: its key and value, and the others."""
    if pins.shard_group is not None:
        yield "shard_group", pins.shard_group, replace(pins, shard_group=None)
    if pins.schedule is not None:
        yield "pipeline.schedule", pins.schedule, replace(pins, schedule=None)
    if pins.virtual is not None:
        yield "pipeline.virtual", pins.virtual, replace(pins, virtual=None)
    if pins.num_stages is not None:
        yield "pipeline.stages", f"of {pins.num_stages} stages", replace(pins, num_stages=None)
    if pins.zero is not None:
        yield "zero", pins.zero, replace(pins, zero=None)
    if pins.offload is not None:
        yield "offload", ", ".join(pins.offload) or "none", replace(pins, offload=None)
    if pins.micro_batch is not None:
        yield "batch.micro", pins.micro_batch, replace(pins, micro_batch=None)
    for axis in MESH_AXES:
        if (degree := getattr(pins.mesh, axis)) is not None:
            yield f"mesh.{axis}", degree, _without_degree(pins, axis)


def _without_degree(pins: OuterPins, axis: str) -> OuterPins:
    degrees = {name: getattr(pins.mesh, name) for name in MESH_AXES if name != axis}
    return replace(pins, mesh=Mesh(**degrees, order=pins.mesh.order))


def _at(settled: Plan, key: str) -> str:
    """Where a decision was fixed."""
    where = settled.where(key)
    return f" (at {where})" if where else ""


def _up_to(num_blocks: int, num_devices: int) -> tuple[int, ...]:
    return tuple(degree for degree in divisors(num_devices) if degree <= num_blocks)


def _why(axis: str, degree: int, num_devices: int, num_blocks: int) -> str:
    if num_devices % degree:
        return f"it does not divide the {num_devices} devices"
    if axis == "pipeline":
        return f"the model has {num_blocks} blocks"
    return "no dim of the model's parameters divides by it"


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) if numbers else "none"
