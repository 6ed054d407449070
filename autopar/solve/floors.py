"""What is known of families and candidates before any is solved: lower bounds, guesses, what cannot fit.

The bound of a family starts as FLOPs at peak and is tightened by the operators' least times; once its tables
are made, the bounds of its candidates follow from these.
"""

from __future__ import annotations

from collections.abc import Callable

from autopar.errors import CaptureError
from autopar.plan.decisions import ScheduleName
from autopar.solve.bounds import makespan_floor_s
from autopar.solve.candidate import Candidate, Choices, Family, Job
from autopar.solve.candidates import Space, schedules
from autopar.solve.mesh import least_state_bytes
from autopar.solve.table_floor import TableFloor

# Units of work of making a table.
_TABLE_UNITS = 1_500
# Bubble of a schedule for one stage of p - 1, in times of a stage.
_BUBBLES = {
    ScheduleName.GPIPE: 1.0,
    ScheduleName.ONE_F_ONE_B: 1.0,
    ScheduleName.INTERLEAVED: 1.0,
    ScheduleName.ZERO_BUBBLE: 1 / 3,
    ScheduleName.ZBV: 1 / 3,
}
_SPLIT = (ScheduleName.ZERO_BUBBLE, ScheduleName.ZBV)
# Of the time of a chain: gradients of weights are at most a half (they cost as much as the forward, about),
# and the forward is at least a fifth (a third, or a quarter with everything recomputed).
_LEAST_PATH = 0.5
_LEAST_FORWARD = 0.2
Progress = Callable[[str], None]


class Floors:
    """Bounds and guesses of one search; everything is worked out when first asked for.

    Attributes:
        of_tables: of every table made so far, by tensor degree, micro-batch and stride.
        units: of work that making tables has taken.
    """

    def __init__(self, choices: Choices, space: Space, job: Job, progress: Progress) -> None:
        self._choices, self._space, self._job = choices, space, job
        self._progress = progress
        self.of_tables: dict[tuple[int, int, int], TableFloor] = {}
        self.units = 0
        self._smallest: dict[int, int] = {}
        self._elements: int | None = None
        self._chains: dict[tuple[int, int], float] = {}

    def note(self, family: Family) -> None:
        """Learns which micro-batches there are."""
        known = self._smallest.get(family.tensor, family.micro_batch)
        self._smallest[family.tensor] = min(known, family.micro_batch)

    def family_s(self, family: Family, chain_s: float) -> float:
        """Lower bound of the step over the schedules that a family may run."""
        share = self._job.cluster.device.time_share
        p, m = family.pipeline, family.num_micro_batches
        named = list(dict.fromkeys(name for name, _ in schedules(family, self._space)))
        floors = [
            makespan_floor_s(
                schedule,
                p,
                m,
                chain_s,
                path_s=chain_s * _LEAST_PATH if schedule in _SPLIT and p > 1 else None,
                forward_s=chain_s * _LEAST_FORWARD,
            )
            for schedule in named
        ]
        if share > 1 and p > 1:
            floors = [max(floor / share, m * chain_s / p) for floor in floors]
        return min(floors, default=float("inf"))

    def guess_s(self, item: Family | Candidate, chain_s: float) -> float:
        """What a step may take: even stages, and the bubble that the schedule usually leaves."""
        p, m = item.pipeline, item.num_micro_batches
        if isinstance(item, Candidate):
            kinds = [(item.schedule, item.virtual)]
        else:
            kinds = list(schedules(item, self._space))
        fills = [_BUBBLES[schedule] / virtual for schedule, virtual in kinds]
        return chain_s / p * (m + (p - 1) * min(fills, default=1.0))

    def scaled_chain_s(self, family: Family) -> float:
        """Least time of the chain, by those of larger micro-batches that are known.

        A micro-batch is at least as quick a sample as a smaller one, so that its chain bounds the smaller
        one's.
        """
        tensor, size = family.tensor, family.micro_batch
        per_sample_s = [s / other for (t, other), s in self._chains.items() if t == tensor and other > size]
        return max(per_sample_s, default=0.0) * size

    def chain_s(self, family: Family) -> float:
        """Least time of the chain by the operators' least times."""
        key = family.tensor, family.micro_batch
        if key not in self._chains:
            self._chains[key] = self._choices.floor_s(*key, 1)
        return self._chains[key]

    def table_floor(self, candidate: Candidate) -> TableFloor:
        """Of the tables of a candidate."""
        return self._floor_of(candidate.tensor, candidate.micro_batch, candidate.tensor_stride)

    def is_tabulated(self, item: Family | Candidate) -> bool:
        """Whether the tables of a tensor degree and micro-batch are made already."""
        return (item.tensor, item.micro_batch, 1) in self.of_tables

    def activations_missing(self, family: Family) -> int:
        """By how much activations miss the memory of a device, judged by the tables of the smallest
        micro-batch of the same tensor degree."""
        smallest = self._smallest.get(family.tensor, family.micro_batch)
        pinned = self._space.pins.offload
        if smallest == family.micro_batch or self.is_tabulated(family):
            return 0
        try:
            floor = self._floor_of(family.tensor, smallest, 1)
        except CaptureError:
            return 0  # the model does not work at the smallest
        if pinned is None or "activations" in pinned:
            least = floor.least_bytes(family.micro_batch / smallest, 2**30)  # what is kept may live elsewhere
        else:
            least = floor.least_bytes(family.micro_batch / smallest, family.pipeline)
        usable = self._job.memory_limit_bytes - self._job.cluster.device.framework_reserved_bytes
        return int(least) - usable

    def certain_shortfall(self, candidate: Candidate) -> int:
        """By how much the state of the parameters alone misses the memory of a device; negative: it fits."""
        if self._elements is None:
            self._elements = self._choices.trainable_elements
        needed = least_state_bytes(self._elements, candidate, self._job)
        return needed - self._job.memory_limit_bytes

    def _floor_of(self, tensor: int, micro_batch: int, stride: int) -> TableFloor:
        key = (tensor, micro_batch, stride)
        if key not in self.of_tables:
            self._progress(f"placements at tensor degree {key[0]}, micro-batch {key[1]}")
            self.units += _TABLE_UNITS if tensor > 1 else _TABLE_UNITS // 4
            self.of_tables[key] = TableFloor(self._choices.tables(*key))
        return self.of_tables[key]
