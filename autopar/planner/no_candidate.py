"""The error where no setting of the degrees and the micro-batch is legal: which pin, and what it may be."""

from __future__ import annotations

from collections.abc import Sequence

from autopar.errors import InfeasibleError, UsageError
from autopar.hardware.cluster import Cluster
from autopar.plan.decisions import Plan, ScheduleName
from autopar.solve.candidates import OuterPins, divisors

_OF_TWO_OR_MORE = (ScheduleName.INTERLEAVED, ScheduleName.ZBV)


def no_candidate(
    settled: Plan, pins: OuterPins, degrees: Sequence[int], num_blocks: int, cluster: Cluster
) -> InfeasibleError | UsageError:
    """Which pin leaves no legal setting, and the values that would be legal."""
    num_devices, mesh = cluster.num_devices, settled.mesh
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
    if pins.micro_batch is not None:
        samples = settled.global_batch // (mesh.data or 1)
        return InfeasibleError(
            f"batch.micro {pins.micro_batch} does not divide the samples of a data rank"
            f"{_at(settled, 'batch.micro')}: batch.global is {settled.global_batch} and legal "
            f"micro-batches are {_list(divisors(max(samples, 1)))}",
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
    return InfeasibleError(
        f"batch.global {settled.global_batch} does not divide over any mesh of {num_devices} devices with at "
        f"most {num_blocks} stages and tensor degrees {_list(tuple(degrees))}; use a multiple of "
        f"{num_devices}",
        binding="batch.global",
    )


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
