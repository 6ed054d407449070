"""A first lower bound of a candidate from the tables of its family: least times of the blocks, and of whole
chains in which what a block hands over is what the next one takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from autopar.cost.choice import BlockChoice
from autopar.plan.decisions import ScheduleName
from autopar.schedule.actions import SPLIT_BACKWARD
from autopar.solve.bounds import makespan_floor_s
from autopar.solve.candidate import Candidate, ChoiceTable, Job
from autopar.solve.cheapest_chain import cheapest_chains, least_by_words
from autopar.solve.packing import least_load

_LARGEST_ELEMENT_BYTES = 4


class TableFloor:
    """Least times over all tables of a tensor degree and micro-batch.

    Attributes:
        is_empty: no table has a choice for every block.
    """

    def __init__(self, tables: Sequence[ChoiceTable]) -> None:
        self.is_empty = not tables
        self._tables = tuple(tables)
        self._loads: list[list[float]] = []
        for table in tables:
            whole = [min(c.forward_s + c.backward_s for c in kind) for kind in table.kinds]
            self._loads.append([whole[kind] for kind in table.blocks])
        self._chains = [_least_chain_s(table, lambda c: c.forward_s + c.backward_s) for table in tables]
        self._paths = [
            _least_chain_s(table, lambda c: c.forward_s + c.backward_s - c.backward_weight_s)
            for table in tables
        ]
        self._forwards = [_least_chain_s(table, lambda c: c.forward_s) for table in tables]
        self._least: dict[tuple[int, int], float] = {}

    @property
    def chain_s(self) -> float:
        """Of one micro-batch through all blocks, forward and backward."""
        return min(self._chains, default=float("inf"))

    def least_bytes(self, samples: float, pipeline: int) -> float:
        """What activations of so many times the samples take at least on some rank: a block while it runs,
        and its share of what all blocks keep of one micro-batch. Both grow with the samples, but for the
        gradients of parameters."""
        least = float("inf")
        for table in self._tables:
            running, saved = [], []
            for kind in table.kinds:
                running.append(min(_running_bytes(c) * samples for c in kind))
                saved.append(min(c.saved_bytes * samples for c in kind))
            kept = sum(saved[kind] for kind in table.blocks) / pipeline
            least = min(least, max(kept, max(running[kind] for kind in table.blocks)))
        return least if self._tables else 0.0

    def step_s(self, candidate: Candidate, job: Job) -> float:
        """Lower bound of the candidate's step, whatever the memory."""
        steps_s = self.steps_s(candidate.schedule, candidate.pipeline, candidate.num_micro_batches, job)
        return min(steps_s, default=float("inf"))

    def steps_s(self, schedule: ScheduleName, p: int, m: int, job: Job, share: float = 1.0) -> list[float]:
        """By table, of a schedule on ``p`` ranks with ``m`` micro-batches.

        Args:
            share: of the tables' micro-batch. No operator is quicker a sample on fewer samples, so that a
                share of its time bounds it.
        """
        return [
            makespan_floor_s(
                schedule,
                p,
                m,
                share * chain_s,
                share * self.slowest_s(index, p),
                path_s=share * path_s if schedule in SPLIT_BACKWARD else None,
                forward_s=share * self._forwards[index],
                time_share=job.cluster.device.time_share,
            )
            for index, (chain_s, path_s) in enumerate(zip(self._chains, self._paths, strict=True))
        ]

    def slowest_s(self, table: int, pipeline: int) -> float:
        """No slowest rank takes less for a micro-batch."""
        if (table, pipeline) not in self._least:
            self._least[table, pipeline] = least_load(self._loads[table], pipeline)
        return self._least[table, pipeline]


def _least_chain_s(table: ChoiceTable, of: Callable[[BlockChoice], float]) -> float:
    """The least sum over the blocks of a chain whose placements meet; infinite where none do."""
    steps = [
        least_by_words((i, (c.input_word, c.output_word), of(c)) for i, c in enumerate(choices))
        for choices in table.kinds
    ]
    ends = cheapest_chains(steps, table.blocks).values()
    return min((total_s for total_s, _ in ends), default=float("inf"))


def _running_bytes(choice: BlockChoice) -> int:
    """Saved and transient activations of a block while it runs, without its parameters' gradients."""
    elements = sum(share.num_elements for share in choice.parameters)
    return choice.saved_bytes + max(0, choice.transient_bytes - _LARGEST_ELEMENT_BYTES * elements)
