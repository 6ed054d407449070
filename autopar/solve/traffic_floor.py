"""Lower bounds of a family by what its ranks must exchange on the data axis, whatever their options.

Where parameters do not fit into a rank's memory undivided, every micro-batch gathers them; where they do,
their gradients are added up once a step. Either takes no less than it takes for blocks with as few elements
as any of their options, and hides behind no more than the compute of the quickest (``cost.synchronisation``).
With F and B the least forward and backward of all blocks, G, S, R what gathering, scattering and reducing all
of them takes, and o the fraction that may overlap:

    ZeRO 3   forward >= max(F + (1 - o) G, G + (1 - o) F), backward likewise with G + S
    ZeRO 2   backward >= B + max((1 - o) S', S' - o B), S' = S without the first block of every stage
    ZeRO 1   once a step, over all stages, max((1 - o) (G + S), (1 - o) G + S - o B)
    ZeRO 0   once a step, over all stages, max((1 - o) R, R - o B)

What is paid once a step is paid by the ranks of the pipeline together, and the slowest pays no less than
their mean, after m micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autopar.cost.synchronisation import DataTraffic, data_traffic
from autopar.cost.training import Training
from autopar.plan.decisions import ScheduleName
from autopar.solve.bounds import makespan_floor_s
from autopar.solve.candidate import ChoiceTable

Kind = tuple[ScheduleName, int]
"""A schedule and the virtual stages of a rank."""


@dataclass(frozen=True, slots=True)
class _Least:
    """Of all blocks of a table: what the quickest options take, and the elements of the smallest.

    Attributes:
        elements: per block, (trainable, frozen).
    """

    forward_s: float
    backward_s: float
    elements: tuple[tuple[int, int], ...]


class TrafficFloor:
    """Lower bounds by the tables of one tensor degree and micro-batch."""

    def __init__(self, tables: Sequence[ChoiceTable]) -> None:
        self._least = [_least_of(table) for table in tables]
        self._known: dict[tuple[int, object], _Traffic] = {}

    def step_s(
        self,
        training: Training,
        level: int,
        schedules: Iterable[Kind],
        num_micro_batches: int,
        share: float,
        chain_s: float = 0.0,
    ) -> float:
        """No plan of these schedules takes less for a step.

        Args:
            training: of all stages.
            level: of ZeRO, in force.
            share: of the tables' micro-batch that a micro-batch is.
            chain_s: what a micro-batch takes at least, forward and backward through all blocks.
        """
        steps_s = [
            _step_s(
                least,
                self._traffic(index, training),
                training,
                level,
                kind,
                num_micro_batches,
                share,
                chain_s,
            )
            for index, least in enumerate(self._least)
            for kind in schedules
        ]
        return min(steps_s, default=0.0)

    def _traffic(self, index: int, training: Training) -> _Traffic:
        key = index, (training.stride, training.group, training.data, "parameters" in training.offload)
        if key not in self._known:
            elements = self._least[index].elements
            known = {size: data_traffic(*size, training) for size in dict.fromkeys(elements)}
            self._known[key] = _Traffic.of([known[size] for size in elements])
        return self._known[key]


@dataclass(frozen=True, slots=True)
class _Traffic:
    """Of all blocks, one after the other.

    Attributes:
        largest_s: scattering the gradients of one block, at most.
    """

    gather_s: float
    scatter_s: float
    reduce_s: float
    largest_s: float

    @classmethod
    def of(cls, traffic: Sequence[DataTraffic]) -> _Traffic:
        """The sum."""
        return cls(
            sum(t.gather_s for t in traffic),
            sum(t.scatter_s for t in traffic),
            sum(t.reduce_s for t in traffic),
            max(t.scatter_s for t in traffic),
        )


def _least_of(table: ChoiceTable) -> _Least:
    forward_s = [min(c.forward_s for c in kind) for kind in table.kinds]
    backward_s = [min(c.backward_s for c in kind) for kind in table.kinds]
    trainable = [min(c.trainable_elements for c in kind) for kind in table.kinds]
    frozen = [min(c.frozen_elements for c in kind) for kind in table.kinds]
    held_before = [0] * len(table.blocks)
    for parameter in table.shared:
        for block in parameter.blocks[1:]:
            held_before[block] += parameter.num_elements
    elements = [
        (max(0, trainable[kind] - held), frozen[kind])
        for kind, held in zip(table.blocks, held_before, strict=True)
    ]
    return _Least(
        sum(forward_s[kind] for kind in table.blocks),
        sum(backward_s[kind] for kind in table.blocks),
        tuple(elements),
    )


def _step_s(
    least: _Least,
    traffic: _Traffic,
    training: Training,
    level: int,
    kind: Kind,
    num_micro_batches: int,
    share: float,
    chain_s: float,
) -> float:
    (schedule, virtual), p = kind, training.pipeline
    takes_turns = training.cluster.device.time_share > 1 and p > 1
    if p == 1 < virtual:
        return 0.0  # stages of one rank synchronise as one
    hidden = training.cluster.device.overlap
    forward_s, backward_s, once_s = share * least.forward_s, share * least.backward_s, 0.0
    gather_s, scatter_s = traffic.gather_s, traffic.scatter_s
    if level == 3:
        forward_s = _beside(forward_s, gather_s, hidden)
        backward_s = _beside(backward_s, gather_s + scatter_s, hidden)
    elif level == 2:
        backward_s = _beside(backward_s, max(0.0, scatter_s - p * virtual * traffic.largest_s), hidden)
    elif level == 1:
        once_s = (1 - hidden) * gather_s + max((1 - hidden) * scatter_s, scatter_s - hidden * backward_s)
    else:
        once_s = max((1 - hidden) * traffic.reduce_s, traffic.reduce_s - hidden * backward_s)
    whole_s = max(forward_s + backward_s, chain_s)
    makespan_s = makespan_floor_s(
        schedule,
        p,
        num_micro_batches,
        whole_s,
        forward_s=forward_s,
        time_share=training.cluster.device.time_share,
    )
    # Where ranks take turns on a processor, one may have ended long before the last: what it exchanges then
    # may cost nothing.
    return makespan_s if takes_turns else max(makespan_s, (num_micro_batches * whole_s + once_s) / p)


def _beside(compute_s: float, traffic_s: float, hidden: float) -> float:
    """Compute with traffic beside it, of which a fraction may be hidden."""
    return max(compute_s + (1 - hidden) * traffic_s, traffic_s + (1 - hidden) * compute_s)
