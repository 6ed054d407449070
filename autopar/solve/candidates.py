"""Which outer settings are legal: degrees, micro-batches, ZeRO levels, under pins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from autopar.plan.decisions import Mesh, ScheduleName
from autopar.solve.candidate import Candidate

_FEW_DIVISORS = 12
_DEFAULT_ZERO = (0, 3)


@dataclass(frozen=True, slots=True)
class OuterPins:
    """Outer decisions that are fixed; None where free."""

    mesh: Mesh
    micro_batch: int | None = None
    zero: int | tuple[int, ...] | None = None
    schedule: ScheduleName | None = None
    num_stages: int | None = None


def divisors(number: int) -> tuple[int, ...]:
    """Divisors, ascending."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return tuple(sorted({*small, *(number // d for d in small)}))


def meshes(
    num_devices: int, num_blocks: int, tensor_degrees: Iterable[int], pins: OuterPins
) -> Iterator[Mesh]:
    """Legal (pipeline, data, tensor) degrees whose product is the number of devices."""
    pinned_pipeline = pins.num_stages or pins.mesh.pipeline
    for tensor in tensor_degrees:
        if num_devices % tensor or pins.mesh.tensor not in (None, tensor):
            continue
        for pipeline in divisors(num_devices // tensor):
            data = num_devices // tensor // pipeline
            if pipeline > num_blocks or pinned_pipeline not in (None, pipeline):
                continue
            if pins.mesh.pipeline not in (None, pipeline) or pins.mesh.data not in (None, data):
                continue
            yield Mesh(pipeline, data, tensor)


def micro_batches(global_batch: int, data: int) -> tuple[int, ...]:
    """Micro-batches worth trying: what divides a rank's samples; of many, those of the form 2^i, 3·2^i."""
    if global_batch % data:
        return ()
    found = divisors(global_batch // data)
    if len(found) <= _FEW_DIVISORS:
        return found
    return tuple(size for size in found if _is_smooth(size) or size == found[-1])


def candidates(global_batch: int, legal_meshes: Iterable[Mesh], pins: OuterPins) -> Iterator[Candidate]:
    """Every legal setting of the outer decisions."""
    for mesh in legal_meshes:
        pipeline, data, tensor = mesh.pipeline, mesh.data, mesh.tensor
        assert pipeline and data and tensor
        sizes = micro_batches(global_batch, data)
        if pins.micro_batch is not None:
            sizes = (pins.micro_batch,) if global_batch % (data * pins.micro_batch) == 0 else ()
        for micro_batch in sizes:
            for zero in _zero_levels(pipeline, data, pins):
                yield Candidate(
                    pipeline=pipeline,
                    tensor=tensor,
                    data=data,
                    num_micro_batches=global_batch // (data * micro_batch),
                    micro_batch=micro_batch,
                    zero=zero,
                    schedule=pins.schedule or ScheduleName.ONE_F_ONE_B,
                )


def _zero_levels(pipeline: int, data: int, pins: OuterPins) -> Iterator[tuple[int, ...]]:
    if isinstance(pins.zero, tuple):
        if len(pins.zero) == pipeline:
            yield pins.zero
    elif pins.zero is not None:
        yield (pins.zero,) * pipeline
    else:
        for level in _DEFAULT_ZERO if data > 1 else (0,):
            yield (level,) * pipeline


def _is_smooth(number: int) -> bool:
    while number % 2 == 0:
        number //= 2
    return number in (1, 3)
