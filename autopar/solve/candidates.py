"""Which outer settings are legal, under pins: families (degrees, micro-batch) and the candidates of each.

A candidate says how a family's tables are run: schedule and virtual stages, ZeRO level, shard group, order of
the axes, offload. What could only be as good as another is left out:

* one stage has one schedule; ``gpipe``, which waits for no message but holds every micro-batch, is no choice
  where these are many to a rank;
* an order of the axes that gives every axis the same neighbours as another; of many devices, orders in which
  the tensor axis is not the innermost (its collectives are those that nothing hides);
* micro-batches: of many divisors only some; shard groups: of a long data axis only some;
* a rank alone on its data axis has nothing to divide: there ZeRO 3 is a choice only for parameters in host
  memory, which need it, and the others run under the lowest level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise, permutations, product

from autopar.plan.bounds import Bound, StageSize, stages_can_hold
from autopar.plan.decisions import MESH_AXES, Mesh, ScheduleName
from autopar.solve.candidate import Candidate, Family, Offload

# So few that all are tried; of more, some between neighbours that are so many times apart.
_FEW_DIVISORS, _FAR_APART = 12, 1.5
_ZERO_LEVELS = (0, 1, 2, 3)
_VIRTUAL_STAGES = (2, 3, 4, 5, 6, 7, 8)
# Of a data axis that is longer, the groups inside a node and those of so many times these are tried.
_MANY_DATA_RANKS = 64
_NODES_OF_GROUP = (1, 4, 16)
# Micro-batches in flight that are many: for each rank of the pipeline, and in any case.
_MANY_IN_FLIGHT, _FEW_IN_FLIGHT = 8, 32

FEW_DEVICES = 16
"""So few that a tensor axis may lie across nodes, and axes in any order."""

NO_OFFLOAD: Offload = ()
OFFLOADS = (
    ("optimizer",),
    ("parameters",),
    ("activations",),
    ("optimizer", "activations"),
    ("parameters", "activations"),
)
"""What may live in host memory where the device's binds."""


@dataclass(frozen=True, slots=True)
class OuterPins:
    """Outer decisions that are fixed; None where free.

    Attributes:
        bounds: by dotted key of the plan, on decisions that are free.
        stage_sizes: how many blocks stages may hold.
    """

    mesh: Mesh
    micro_batch: int | None = None
    zero: int | tuple[int, ...] | None = None
    schedule: ScheduleName | None = None
    virtual: int | None = None
    num_stages: int | None = None
    shard_group: int | None = None
    offload: Offload | None = None
    bounds: Mapping[str, Bound] = field(default_factory=dict)
    stage_sizes: tuple[StageSize, ...] = ()

    def holds(self, key: str, number: int) -> bool:
        """Whether a number is within the bound on its decision."""
        bound = self.bounds.get(key)
        return bound is None or bound.holds(number)


def _everything(schedule: ScheduleName, virtual: int, zero: int, offload: Offload) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Space:
    """What may be searched.

    Attributes:
        num_blocks: of the chain.
        nodes: of the cluster.
        devices_per_node: likewise.
        allows: whether a schedule with so many virtual stages, a (highest) ZeRO level and an offload go
            together.
    """

    pins: OuterPins
    num_blocks: int
    nodes: int
    devices_per_node: int
    allows: Callable[[ScheduleName, int, int, tuple[str, ...]], bool] = _everything


def divisors(number: int) -> tuple[int, ...]:
    """Divisors, ascending."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return tuple(sorted({*small, *(number // d for d in small)}))


def meshes(
    num_devices: int, num_blocks: int, tensor_degrees: Iterable[int], pins: OuterPins
) -> Iterator[Mesh]:
    """Legal (pipeline, data, tensor) degrees whose product is the number of devices."""
    for tensor in tensor_degrees:
        if num_devices % tensor or pins.mesh.tensor not in (None, tensor):
            continue
        for pipeline in divisors(num_devices // tensor):
            data = num_devices // tensor // pipeline
            if pipeline > num_blocks or pins.mesh.pipeline not in (None, pipeline):
                continue
            if pins.num_stages is not None and pins.num_stages % pipeline:
                continue
            if pins.mesh.data not in (None, data):
                continue
            degrees = {"pipeline": pipeline, "data": data, "tensor": tensor}
            if not all(pins.holds(f"mesh.{axis}", degree) for axis, degree in degrees.items()):
                continue
            yield Mesh(pipeline, data, tensor)


def micro_batches(global_batch: int, data: int, bound: Bound | None = None) -> tuple[int, ...]:
    """Micro-batches worth trying: what divides a rank's samples.

    Of many divisors the smallest, the largest, those of the form 2^i or 3·2^i, and so many others that no two
    neighbours are more than 1.5 times apart where a divisor lies between them. What lies between sizes that
    are nearer is left out: that a plan is optimal says nothing of it.
    """
    if global_batch % data:
        return ()
    found = divisors(global_batch // data)
    if bound is not None:
        found = tuple(size for size in found if bound.holds(size))
    if len(found) <= _FEW_DIVISORS:
        return found
    kept = [found[0]]
    for size, following in pairwise(found[1:]):
        if _is_smooth(size) or following > _FAR_APART * kept[-1]:
            kept.append(size)
    return (*kept, found[-1])


def families(global_batch: int, legal_meshes: Iterable[Mesh], pins: OuterPins) -> Iterator[Family]:
    """Every legal setting of degrees and micro-batch."""
    for mesh in legal_meshes:
        pipeline, data, tensor = mesh.pipeline, mesh.data, mesh.tensor
        assert pipeline and data and tensor
        sizes = micro_batches(global_batch, data, pins.bounds.get("batch.micro"))
        if pins.micro_batch is not None:
            sizes = (pins.micro_batch,) if global_batch % (data * pins.micro_batch) == 0 else ()
        for micro_batch in sizes:
            yield Family(pipeline, tensor, data, global_batch // (data * micro_batch), micro_batch)


def candidates(family: Family, space: Space) -> Iterator[Candidate]:
    """Every way of running a family; those that offload last."""
    pins = space.pins
    offloads = (NO_OFFLOAD, *OFFLOADS) if pins.offload is None else (pins.offload,)
    settings = product(offloads, schedules(family, space), orders(family, space))
    for offload, (schedule, virtual), order in settings:
        for zero in _zero_levels(family, virtual, offload, pins):
            if not space.allows(schedule, virtual, max(zero), offload) or not can_offload(offload, zero):
                continue
            for group in shard_groups(family, zero, order, space):
                yield _candidate(family, zero, schedule, virtual, order, group, offload)


def divisions(family: Family, space: Space) -> Iterator[Candidate]:
    """Of the candidates of a family, one for every way of dividing and offloading state: under the first
    schedule that allows it."""
    pins = space.pins
    for offload in (NO_OFFLOAD, *OFFLOADS) if pins.offload is None else (pins.offload,):
        levels: dict[frozenset[int], tuple[tuple[int, ...], ScheduleName, int]] = {}
        for schedule, virtual in schedules(family, space):
            for zero in _zero_levels(family, virtual, offload, pins):
                if space.allows(schedule, virtual, max(zero), offload) and can_offload(offload, zero):
                    levels.setdefault(frozenset(zero), (zero, schedule, virtual))
        for (zero, schedule, virtual), order in product(levels.values(), orders(family, space)):
            for group in shard_groups(family, zero, order, space):
                yield _candidate(family, zero, schedule, virtual, order, group, offload)


def _candidate(
    family: Family,
    zero: tuple[int, ...],
    schedule: ScheduleName,
    virtual: int,
    order: tuple[str, str, str],
    group: int,
    offload: Offload,
) -> Candidate:
    return Candidate(
        family.pipeline,
        family.tensor,
        family.data,
        family.num_micro_batches,
        family.micro_batch,
        zero,
        schedule,
        virtual,
        order,
        group,
        offload,
    )


def schedules(family: Family, space: Space) -> Iterator[tuple[ScheduleName, int]]:
    """Schedules with their stages per rank."""
    pins, pipeline = space.pins, family.pipeline
    named = tuple(ScheduleName) if pins.schedule is None else (pins.schedule,)
    many = family.num_micro_batches > max(_FEW_IN_FLIGHT, _MANY_IN_FLIGHT * pipeline)
    for schedule in named:
        unwanted = (schedule is ScheduleName.GPIPE and many) or (
            pipeline == 1 and schedule is not ScheduleName.ONE_F_ONE_B
        )
        simple = pins.virtual in (None, 1) and pins.holds("pipeline.virtual", 1)
        if pins.schedule is None and unwanted and simple:
            continue
        for virtual in _virtual_stages(schedule, pins):
            stages = pipeline * virtual
            if stages > space.num_blocks or pins.num_stages not in (None, stages):
                continue
            if stages_can_hold(pins.stage_sizes, stages, space.num_blocks):
                yield schedule, virtual


def orders(family: Family, space: Space) -> Iterator[tuple[str, str, str]]:
    """Orders of the axes that differ in who is whose neighbour."""
    pinned = space.pins.mesh.order
    if pinned is not None:
        yield pinned
        return
    seen: set[tuple[str, ...]] = set()
    long = [axis for axis in MESH_AXES if getattr(family, axis) > 1]
    any_place = space.nodes * space.devices_per_node <= FEW_DEVICES
    for slowest, middle, fastest in (
        (MESH_AXES, *permutations(MESH_AXES)) if space.nodes > 1 else (MESH_AXES,)
    ):
        neighbours = tuple(axis for axis in (slowest, middle, fastest) if axis in long)
        is_usual = "tensor" not in long or neighbours[-1] == "tensor"
        if neighbours not in seen and (is_usual or any_place):
            seen.add(neighbours)
            yield slowest, middle, fastest


def shard_groups(
    family: Family, zero: tuple[int, ...], order: tuple[str, ...], space: Space
) -> tuple[int, ...]:
    """Sizes of the groups that ZeRO divides among; 0: the whole data axis. Of one rank each they are none."""
    data, pinned = family.data, space.pins.shard_group
    if pinned is not None:
        return (0 if pinned == data else pinned,) if data % pinned == 0 else ()
    if (bound := space.pins.bounds.get("shard_group")) is not None:
        legal = [0 if size == data else size for size in divisors(data) if bound.holds(size)]
        return tuple(legal if max(zero) else legal[-1:])
    if max(zero) == 0:
        return (0,)
    if data <= _MANY_DATA_RANKS:
        return (0, *divisors(data)[-2:0:-1])
    stride = 1
    sizes = {"pipeline": family.pipeline, "data": data, "tensor": family.tensor}
    for axis in order[order.index("data") + 1 :]:
        stride *= sizes[axis]
    in_node = space.devices_per_node // stride
    if in_node < 2:
        return (0,)
    groups = [*divisors(in_node)[1:-1], *(in_node * nodes for nodes in _NODES_OF_GROUP)]
    return (0, *(group for group in groups if group < data and data % group == 0))


def _virtual_stages(schedule: ScheduleName, pins: OuterPins) -> tuple[int, ...]:
    legal: tuple[int, ...]
    if schedule is ScheduleName.INTERLEAVED:
        legal = _VIRTUAL_STAGES if pins.virtual is None else (pins.virtual,) if pins.virtual > 1 else ()
        bound = pins.bounds.get("pipeline.virtual")
        if bound is not None:
            few = max(bound.least, 2)
            legal = tuple(v for v in legal if bound.holds(v)) or ((few,) if bound.holds(few) else ())
    else:
        legal = (2,) if schedule is ScheduleName.ZBV else (1,)
    return tuple(v for v in legal if pins.virtual in (None, v) and pins.holds("pipeline.virtual", v))


def _zero_levels(
    family: Family, virtual: int, offload: Offload, pins: OuterPins
) -> Iterator[tuple[int, ...]]:
    num_stages = family.pipeline * virtual
    if isinstance(pins.zero, tuple):
        if len(pins.zero) == num_stages:
            yield pins.zero
    elif pins.zero is not None:
        yield (pins.zero,) * num_stages
    else:
        levels = [level for level in _ZERO_LEVELS if pins.holds("zero", level)]
        if family.data == 1:
            levels = levels[-1:] if "parameters" in offload else levels[:1]
        for level in levels:
            yield (level,) * num_stages


def can_offload(offload: Offload, zero: tuple[int, ...]) -> bool:
    """Whether what is offloaded is divided as it has to be: parameters under ZeRO 3 alone."""
    return "parameters" not in offload or min(zero) == 3


def _is_smooth(number: int) -> bool:
    while number % 2 == 0:
        number //= 2
    return number in (1, 3)
