"""What is known of families and candidates before any is solved: lower bounds, guesses, what cannot fit.

The bound of a family starts as FLOPs at peak and is tightened by tables of larger micro-batches, which are no
slower a sample; once its tables are made, the bounds of its candidates follow from these.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence

from autopar.cost.offload import step_update_s
from autopar.cost.training import Training
from autopar.errors import CaptureError
from autopar.plan.decisions import ScheduleName
from autopar.schedule.actions import SPLIT_BACKWARD
from autopar.solve.bounds import makespan_floor_s
from autopar.solve.bundle import Bundle
from autopar.solve.candidate import Candidate, Choices, ChoiceTable, Family, Job, Offload, tables_of
from autopar.solve.candidates import Space, divisions, schedules
from autopar.solve.chain_build import candidate_training
from autopar.solve.memory_floor import MemoryFloor
from autopar.solve.mesh import least_state_bytes
from autopar.solve.parts import Parts, PartsOf, least_of
from autopar.solve.recipes import Recipes
from autopar.solve.relaxation import Relaxed, relaxed_step_s
from autopar.solve.table_floor import TableFloor
from autopar.solve.traffic_floor import TrafficFloor

# Units of work of making tables, and of a relaxation for each of its stages; of many stages each costs more.
_TABLE_UNITS = 300
_RELAXATION_UNITS = 4
_MANY_STAGES = 24
# Bubble of a schedule for one stage of p - 1, in times of a stage.
_BUBBLES = {
    ScheduleName.GPIPE: 1.0,
    ScheduleName.ONE_F_ONE_B: 1.0,
    ScheduleName.INTERLEAVED: 1.0,
    ScheduleName.ZERO_BUBBLE: 1 / 3,
    ScheduleName.ZBV: 1 / 3,
}
Progress = Callable[[str], None]
_Place = tuple[int, int, int, int]


class Floors:
    """Bounds and guesses of one search; everything is worked out when first asked for.

    Attributes:
        of_tables: of every table made so far, by tensor degree, micro-batch and stride.
        recipes: over tables made so far, likewise.
        units: of work that making tables has taken.
    """

    def __init__(self, choices: Choices, space: Space, job: Job, progress: Progress) -> None:
        self._choices, self._space, self._job = choices, space, job
        self._progress = progress
        self.of_tables: dict[tuple[int, int, int], TableFloor] = {}
        self.units = 0
        self._elements: int | None = None
        self._sizes: dict[int, set[int]] = {}
        self._refused: set[tuple[int, int, int]] = set()
        self._traffic: dict[tuple[int, int], TrafficFloor] = {}
        self._chains_s: dict[tuple[object, ...], float] = {}
        self._memory: dict[tuple[tuple[int, int, int], int], MemoryFloor] = {}
        self._of_options: dict[_Place, PartsOf] = {}
        self._known_parts: dict[tuple[_Place, Training, int], Parts] = {}
        self.recipes: dict[tuple[int, int, int], Recipes] = {}
        self._relaxed: dict[tuple[_Place, tuple[Candidate, ...]], Relaxed] = {}

    def note(self, family: Family) -> None:
        """Learns which micro-batches there are."""
        self._sizes.setdefault(family.tensor, set()).add(family.micro_batch)

    def family_s(self, family: Family, chain_s: float) -> float:
        """Lower bound of the step over the schedules that a family may run."""
        share = self._job.cluster.device.time_share
        p, m = family.pipeline, family.num_micro_batches
        named = dict.fromkeys(name for name, _ in schedules(family, self._space))
        floors = (makespan_floor_s(schedule, p, m, chain_s, time_share=share) for schedule in named)
        return min(floors, default=float("inf"))

    def guess_s(self, item: Family | Bundle | Candidate, chain_s: float) -> float:
        """What a step may take: even stages, and the bubble that the schedule usually leaves."""
        p, m = item.family.pipeline, item.family.num_micro_batches
        if isinstance(item, Family):
            kinds = list(schedules(item, self._space))
        else:
            kinds = [(item.schedule, item.virtual)]
        fills = [_BUBBLES[schedule] / virtual for schedule, virtual in kinds]
        return chain_s / p * (m + (p - 1) * min(fills, default=1.0))

    def scaled(self, family: Family) -> tuple[float, float]:
        """Lower bounds of a family's step and chain by the tables that are made of larger micro-batches of
        its tensor degree; of the largest they are made."""
        size, named = family.micro_batch, dict.fromkeys(n for n, _ in schedules(family, self._space))
        larger = sorted(self._larger(family), reverse=True)
        step_s = chain_s = 0.0
        for other in larger:
            key = family.tensor, other, 1
            if key not in self.of_tables and (step_s > 0.0 or key in self._refused):
                continue
            if not self._has_tables(*key):
                continue
            floor, share, p, m = self.of_tables[key], size / other, family.pipeline, family.num_micro_batches
            steps_s = [s for name in named for s in floor.steps_s(name, p, m, self._job, share)]
            step_s = max(step_s, min(steps_s, default=float("inf")))
            chain_s = max(chain_s, share * floor.chain_s)
        return step_s, chain_s

    def exchange_s(self, family: Family, worth_s: float) -> float:
        """Lower bound of a family's step by how its ranks divide the state that does not fit otherwise: by
        what they exchange for it, and by what fits into the memory of all of them.

        Args:
            worth_s: plans that take as long are of no interest.
        """
        return self.divided_s(family, list(divisions(family, self._space)), worth_s)

    def divided_s(
        self,
        family: Family,
        members: Sequence[Candidate],
        worth_s: float,
        kinds: Sequence[tuple[ScheduleName, int]] = (),
    ) -> float:
        """The same for some ways of dividing the state. By the tables nearest to the family's micro-batch;
        by memory where these are its own.

        Args:
            members: one candidate for every way.
            kinds: schedules with their stages per rank; none: all that the family may run.
        """
        made = self._larger_made(family)
        if not made or any(min(one.zero) != max(one.zero) for one in members):
            return 0.0
        ways: dict[tuple[int, Offload, bool], list[Candidate]] = {}
        by_way: dict[bool, list[tuple[ScheduleName, int]]] = {}
        for kind in kinds or schedules(family, self._space):
            by_way.setdefault(kind[0] in SPLIT_BACKWARD, []).append(kind)
        for one in members:
            if self.certain_shortfall(one) <= 0:
                for splits in by_way:
                    ways.setdefault((max(one.zero), one.offload, splits), []).append(one)
        # Memory is looked at where the bound depends on it: of the least of all, until that is one's own.
        waiting = [
            (self._exchanged_s(family, alike, by_way[way[2]], min(made)), way) for way, alike in ways.items()
        ]
        heapq.heapify(waiting)
        known: set[tuple[int, Offload, bool]] = set()
        while waiting:
            least_s, way = heapq.heappop(waiting)
            if way in known or min(made) != family.micro_batch:
                return least_s
            known.add(way)
            chain_s = self._chain_within_memory_s(family, ways[way], way[2], worth_s)
            if chain_s < float("inf"):
                found_s = self._exchanged_s(family, ways[way], by_way[way[2]], min(made), chain_s)
                heapq.heappush(waiting, (max(least_s, found_s), way))
        return float("inf")

    def _exchanged_s(
        self,
        family: Family,
        alike: Sequence[Candidate],
        kinds: Sequence[tuple[ScheduleName, int]],
        size: int,
        chain_s: float = 0.0,
    ) -> float:
        """Lower bound of the step of candidates that divide state at one level and offload the same.

        Args:
            size: micro-batch of the tables that it is bounded by.
            chain_s: what a micro-batch takes at least.
        """
        key = family.tensor, size
        if key not in self._traffic:
            self._traffic[key] = TrafficFloor(self._choices.tables(*key))
        least_s, seen = float("inf"), set[tuple[object, ...]]()
        for one in alike:
            if (one.order, one.shard_group) not in seen:
                seen.add((one.order, one.shard_group))
                training = candidate_training(one, self._job)
                level, share = training.level(max(one.zero)), family.micro_batch / size
                least_s = min(
                    least_s,
                    self._traffic[key].step_s(
                        training, level, kinds, family.num_micro_batches, share, chain_s
                    ),
                )
        return least_s

    def _chain_within_memory_s(
        self, family: Family, alike: Sequence[Candidate], splits: bool, worth_s: float
    ) -> float:
        """Least forward and backward of a micro-batch within the memory of all ranks, by a family's tables.

        Args:
            alike: candidates that divide state at one level and offload the same.
            splits: whether their backward pass is split.
        """
        groups = tuple((one.order, one.shard_group) for one in alike)
        key = family, max(alike[0].zero), alike[0].offload, splits, groups, worth_s
        if key in self._chains_s:
            return self._chains_s[key]
        device, p = self._job.cluster.device, family.pipeline
        place = family.tensor, family.micro_batch, 1
        most_virtual = max((virtual for _, virtual in schedules(family, self._space)), default=1)
        least_s = float("inf")
        for index, table in enumerate(tables_of(self._choices, family)):
            parts = least_of([part for one in alike for part in self._parts(table, (*place, index), one)])
            sent = min(c.output_bytes for kind in table.kinds for c in kind) if p > 1 else 0
            usable = self._job.memory_limit_bytes - device.framework_reserved_bytes - 2 * sent
            if (place, index) not in self._memory:
                self._memory[place, index] = MemoryFloor(table)
            found_s = self._memory[place, index].chain_s(
                parts,
                p * (usable - float(parts.running_bytes.min())),
                num_micro_batches=family.num_micro_batches,
                step_s=float("inf") if device.time_share > 1 and p > 1 else worth_s,
                splits=splits,
                num_stages=p * most_virtual,
                is_one_stage=p == most_virtual == 1,
            )
            least_s = min(least_s, found_s)
        self._chains_s[key] = least_s
        return least_s

    def come_nearer(self, family: Family, largest: int) -> bool:
        """Makes tables of a micro-batch between a family's and the next larger one that has tables, if any
        lies there; they bound smaller ones of the tensor degree, too.

        Args:
            largest: micro-batch of that degree that is of interest.
        """
        tensor, size = family.tensor, family.micro_batch
        nearest = min([*self._larger_made(family), largest + 1])
        between = [b for b in self._larger(family) if b < nearest and (tensor, b, 1) not in self._refused]
        if not between:
            return False
        wanted = math.sqrt(size * nearest)
        chosen = min(between, key=lambda b: (max(b / wanted, wanted / b), b))
        self._has_tables(tensor, chosen, 1)
        return True

    def table_floor(self, item: Candidate | Family) -> TableFloor:
        """Of the tables of a candidate, or of a family whose tensor axis is the innermost."""
        return self._floor_of(item.tensor, item.micro_batch, item.tensor_stride)

    def update_s(self, members: Sequence[Candidate]) -> float:
        """Least time of the update: that of a rank's even share of the parameters."""
        least_s = float("inf")
        for candidate in members:
            training = candidate_training(candidate, self._job)
            share = self._trainable // (candidate.pipeline * candidate.tensor)
            least_s = min(least_s, *(step_update_s(share, zero, training) for zero in set(candidate.zero)))
        return least_s

    def relaxed(
        self, members: Sequence[Candidate], of_tables: Candidate | Family, worth_s: float
    ) -> list[Relaxed]:
        """By table, what no plan of some candidates of a bundle goes below, with memory and without.

        Args:
            of_tables: whose tables bound them.
            worth_s: what cannot be quicker need not be known better.
        """
        one = members[0]
        floor = self.table_floor(of_tables)
        tables = tables_of(self._choices, of_tables)
        floors_s = floor.steps_s(one.schedule, one.pipeline, one.num_micro_batches, self._job)
        result = []
        for index, (table, floor_s) in enumerate(zip(tables, floors_s, strict=True)):
            found = Relaxed(floor_s, floor_s)
            if floor_s < worth_s:
                size = one.num_stages * max(1, one.num_stages // _MANY_STAGES)
                self.units += _RELAXATION_UNITS * size
                place = of_tables.tensor, of_tables.micro_batch, of_tables.tensor_stride, index
                key = place, tuple(members)
                if key not in self._relaxed:  # searches beside each other ask for the same
                    slowest_s = floor.slowest_s(index, one.pipeline)
                    parts = [part for member in members for part in self._parts(table, place, member)]
                    self._relaxed[key] = relaxed_step_s(table, members, parts, self._job, slowest_s=slowest_s)
                found = self._relaxed[key]
            result.append(Relaxed(max(found.step_s, floor_s), max(found.free_s, floor_s)))
        return result

    def _parts(self, table: ChoiceTable, place: _Place, candidate: Candidate) -> Iterator[Parts]:
        """What the table's options add at each ZeRO level of a candidate.

        Args:
            place: tensor degree, micro-batch and stride that the table is for, and which it is of these.
        """
        training = candidate_training(candidate, self._job)
        for level in sorted(set(candidate.zero)):
            key = place, training, level
            if key not in self._known_parts:
                if place not in self._of_options:
                    self._of_options[place] = PartsOf(table)
                self._known_parts[key] = self._of_options[place].under(training, level)
            yield self._known_parts[key]

    def is_tabulated(self, item: Family | Bundle | Candidate) -> bool:
        """Whether the tables of a tensor degree and micro-batch are made already."""
        return (item.family.tensor, item.family.micro_batch, 1) in self.of_tables

    def activations_missing(self, family: Family) -> int:
        """By how much activations miss the memory of a device, judged by tables of the same tensor degree and
        a smaller micro-batch whose blocks have the same options."""
        if self.is_tabulated(family):
            return 0
        tensor, own = family.tensor, family.micro_batch
        smaller = sorted(b for b in self._sizes[tensor] if b < own and has_options_of(own, b, tensor))
        made = [b for b in smaller if (tensor, b, 1) in self.of_tables]
        if not smaller:
            return 0
        smallest = (made or smaller)[0]
        try:
            floor = self._floor_of(tensor, smallest, 1)
        except CaptureError:
            return 0  # the model does not work at the smallest
        pinned = self._space.pins.offload
        if pinned is None or "activations" in pinned:
            least = floor.least_bytes(own / smallest, 2**30)  # what is kept may live elsewhere
        else:
            least = floor.least_bytes(own / smallest, family.pipeline)
        usable = self._job.memory_limit_bytes - self._job.cluster.device.framework_reserved_bytes
        return int(least) - usable

    def certain_shortfall(self, candidate: Candidate) -> int:
        """By how much the state of the parameters alone misses the memory of a device; negative: it fits."""
        needed = least_state_bytes(self._trainable, candidate, self._job)
        return needed - self._job.memory_limit_bytes

    def _larger(self, family: Family) -> list[int]:
        """Micro-batches whose tables bound a family: no operator is slower a sample, and every option of a
        block is among theirs."""
        size, tensor = family.micro_batch, family.tensor
        return [b for b in self._sizes[tensor] if b >= size and has_options_of(size, b, tensor)]

    def _larger_made(self, family: Family) -> list[int]:
        """Those of them that have tables."""
        return [b for b in self._larger(family) if (family.tensor, b, 1) in self.of_tables]

    @property
    def _trainable(self) -> int:
        if self._elements is None:
            self._elements = self._choices.trainable_elements
        return self._elements

    def _has_tables(self, tensor: int, micro_batch: int, stride: int) -> bool:
        """Whether the model works at a micro-batch, of which tables are made if so."""
        try:
            self._floor_of(tensor, micro_batch, stride)
        except CaptureError:
            self._refused.add((tensor, micro_batch, stride))
            return False
        return True

    def _floor_of(self, tensor: int, micro_batch: int, stride: int) -> TableFloor:
        key = (tensor, micro_batch, stride)
        if key not in self.of_tables:
            self._progress(f"placements at tensor degree {key[0]}, micro-batch {key[1]}")
            self.units += _TABLE_UNITS if tensor > 1 else _TABLE_UNITS // 4
            self.of_tables[key] = TableFloor(self._choices.tables(*key))
        return self.of_tables[key]


def has_options_of(size: int, other: int, tensor: int) -> bool:
    """Whether blocks have the options at a micro-batch of ``other`` samples that they have at ``size``: what
    a tensor axis divides at the one, it divides at the other."""
    return other % math.gcd(size, tensor) == 0
