"""What each option of a block adds to its stage, where all adds up: the coefficients of the relaxation.

Of communication on the data axis, max(compute, traffic) over the blocks of a stage is at least either sum,
and what may not overlap is paid in any case: so a time has several rows, each of which bounds it. What holds
for several candidates at once is the least of their coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autopar.cost.choice import BlockChoice
from autopar.cost.stage_memory import stage_pieces
from autopar.cost.synchronisation import data_traffic
from autopar.cost.training import Training
from autopar.solve.candidate import ChoiceTable
from autopar.solve.chain_build import element_update_s
from autopar.solve.stage_floor import holding

Row = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rows:
    """A time of a stage is at least ``weights @ options + least - spared``, row by row, with what is spared
    of any option that may be the stage's first.

    Attributes:
        weights: (rows, options).
        least: (rows,).
        spared: (rows, options); the same for all options of a kind.
    """

    weights: Row
    least: Row
    spared: Row

    def least_with(self, options: NDArray[np.bool_]) -> Row:
        """What a stage takes beside its options, whichever of these it has."""
        spared: Row = self.spared[:, options].max(axis=1, initial=0.0)
        return self.least - spared


def _rows(weights: Sequence[Row], least: Row) -> Rows:
    stacked = np.stack(list(weights))
    return Rows(stacked, least, np.zeros_like(stacked))


@dataclass(frozen=True, slots=True)
class Parts:
    """Per option of a table, in the order of its kinds.

    Attributes:
        kind: of the option.
        forward_s: of a micro-batch.
        input_s: of its backward, or of the input half with what sticks out.
        weight_s: of the weight half.
        sync_s: once a step.
        update_s: once a step.
        held_bytes: all through a step.
        saved_bytes: per micro-batch in flight.
        running_bytes: while the block runs.
    """

    kind: NDArray[np.int64]
    forward_s: Rows
    input_s: Rows
    weight_s: Row
    sync_s: Rows
    update_s: Row
    held_bytes: Row
    saved_bytes: Row
    running_bytes: Row

    def only(self, options: NDArray[np.int64]) -> Parts:
        """Of some of the options; all keep their least running bytes."""
        least = np.array([self.running_bytes[self.kind == kind].min() for kind in self.kind])

        def of(rows: Rows) -> Rows:
            return Rows(rows.weights[:, options], rows.least, rows.spared[:, options])

        return Parts(
            self.kind[options],
            of(self.forward_s),
            of(self.input_s),
            self.weight_s[options],
            of(self.sync_s),
            self.update_s[options],
            self.held_bytes[options],
            self.saved_bytes[options],
            least[options],
        )


def parts_of(table: ChoiceTable, training: Training, zero: int) -> Parts:
    """The parts of a table's options under a ZeRO level."""
    return PartsOf(table).under(training, zero)


class PartsOf:
    """The parts of one table's options in whatever training; what many have in common is worked out once."""

    def __init__(self, table: ChoiceTable) -> None:
        choices, self._sizes = _options(table)
        self._first = choices[0]
        self._forward = np.array([c.forward_s for c in choices])
        self._backward = np.array([c.backward_s for c in choices])
        self._weight = np.array([c.backward_weight_s for c in choices])
        self._saved = np.array([float(c.saved_bytes) for c in choices])
        self._transient = np.array([float(c.transient_bytes) for c in choices])
        self._update_weight = np.array(
            [c.update_weight * trainable for c, (trainable, _) in zip(choices, self._sizes, strict=True)]
        )
        self._kind = np.array([index for index, options in enumerate(table.kinds) for _ in options])
        # What a stage's first block holds, tied parameters included.
        self._largest = [(max(c.trainable_elements for c in options), 0) for options in table.kinds]
        self._traffic: dict[tuple[object, ...], _Traffic] = {}
        self._memory: dict[tuple[object, ...], _Memory] = {}

    def under(self, training: Training, zero: int) -> Parts:
        """The parts under a ZeRO level."""
        level, overlap = training.level(zero), training.cluster.device.overlap
        traffic, memory = self._traffic_of(training), self._memory_of(training, zero)
        forward, backward, gather, across = self._forward, self._backward, traffic.gather, traffic.across
        scatter = traffic.reduce if level == 0 else traffic.scatter
        weight = self._weight if training.splits_backward else 0.0 * self._weight
        down, up = self._moved(training)
        stays = 0.0 if "activations" in training.offload else 1.0
        return Parts(
            kind=self._kind,
            forward_s=_combined(forward, _in_forward(level, overlap, forward, gather), down),
            input_s=_combined(
                backward - weight, _in_backward(level, overlap, backward, gather, scatter, traffic.first), up
            ),
            weight_s=weight,
            sync_s=_once(
                level,
                overlap,
                0.0 * backward if training.splits_backward else backward,
                gather,
                scatter,
                across,
            ),
            update_s=element_update_s(zero, training) * self._update_weight,
            held_bytes=memory.held,
            saved_bytes=stays * self._saved,
            running_bytes=memory.running + self._transient + (1.0 - stays) * self._saved,
        )

    def _traffic_of(self, training: Training) -> _Traffic:
        key = training.stride, training.group, training.data, "parameters" in training.offload
        if key not in self._traffic:
            sizes = dict.fromkeys((*self._sizes, *self._largest))
            known = {size: data_traffic(*size, training) for size in sizes}
            own = [known[size] for size in self._sizes]
            self._traffic[key] = _Traffic(
                gather=np.array([t.gather_s for t in own]),
                scatter=np.array([t.scatter_s for t in own]),
                reduce=np.array([t.reduce_s for t in own]),
                across=np.array([t.across_s for t in own]),
                first=np.array([known[size].scatter_s for size in self._largest])[self._kind],
            )
        return self._traffic[key]

    def _memory_of(self, training: Training, zero: int) -> _Memory:
        key = zero, training.group, training.data > 1, training.offload
        if key not in self._memory:
            # Of a block alone, all but what it saves and needs in between depends on its parameters alone.
            idle = replace(self._first, saved_bytes=0, transient_bytes=0)
            known = {
                size: stage_pieces([holding(idle, *size)], training, zero)
                for size in dict.fromkeys(self._sizes)
            }
            own = [known[size] for size in self._sizes]
            self._memory[key] = _Memory(
                held=np.array([float(p.state.total) for p in own]),
                running=np.array([float(p.running + p.reduced) for p in own]),
            )
        return self._memory[key]

    def _moved(self, training: Training) -> tuple[Row, Row]:
        """By what moving activations to the host and back exceeds the compute beside it; negative: hides."""
        if "activations" not in training.offload:
            return 0.0 * self._forward, 0.0 * self._backward
        moved = training.host_s(1.0) * self._saved
        beside = 0.0 if training.cluster.device.kind == "cpu" else 1.0
        return moved - beside * self._forward, moved - beside * self._backward


@dataclass(frozen=True, slots=True)
class _Traffic:
    """Of every option on the data axis, seconds (``DataTraffic``).

    Attributes:
        first: scattering its gradients, where its block is the first of a stage.
    """

    gather: Row
    scatter: Row
    reduce: Row
    across: Row
    first: Row


@dataclass(frozen=True, slots=True)
class _Memory:
    """Of every option, bytes.

    Attributes:
        held: all through a step.
        running: while it runs, beside what it saves and needs in between.
    """

    held: Row
    running: Row


def least_of(parts: Sequence[Parts]) -> Parts:
    """What is at most the parts of each."""

    def least(rows: Sequence[Rows]) -> Rows:
        return Rows(
            np.minimum.reduce([r.weights for r in rows]),
            np.minimum.reduce([r.least for r in rows]),
            np.maximum.reduce([r.spared for r in rows]),
        )

    return Parts(
        kind=parts[0].kind,
        forward_s=least([p.forward_s for p in parts]),
        input_s=least([p.input_s for p in parts]),
        weight_s=np.minimum.reduce([p.weight_s for p in parts]),
        sync_s=least([p.sync_s for p in parts]),
        update_s=np.minimum.reduce([p.update_s for p in parts]),
        held_bytes=np.minimum.reduce([p.held_bytes for p in parts]),
        saved_bytes=np.minimum.reduce([p.saved_bytes for p in parts]),
        running_bytes=np.minimum.reduce([p.running_bytes for p in parts]),
    )


def _options(table: ChoiceTable) -> tuple[list[BlockChoice], list[tuple[int, int]]]:
    """All options with their (trainable, frozen) elements; a tied parameter counts with its first block."""
    repeated: dict[int, int] = {}
    for parameter in table.shared:
        for block in parameter.blocks[1:]:
            kind = table.blocks[block]
            repeated[kind] = repeated.get(kind, 0) + parameter.num_elements
    choices, sizes = [], []
    for index, kind_choices in enumerate(table.kinds):
        for choice in kind_choices:
            choices.append(choice)
            trainable = max(0, choice.trainable_elements - repeated.get(index, 0))
            sizes.append((trainable, choice.frozen_elements))
    return choices, sizes


def _in_forward(level: int, overlap: float, forward: Row, gather: Row) -> Rows:
    """Of gathers, what sticks out of a forward."""
    if level < 3:
        return _rows(2 * [0.0 * forward], np.zeros(2))
    return _rows([(1 - overlap) * gather, gather - overlap * forward], np.zeros(2))


def _in_backward(level: int, overlap: float, backward: Row, gather: Row, scatter: Row, first_s: Row) -> Rows:
    """Of gathers and scatters, what sticks out of a backward; at level 2 the scatter of the stage's first
    block, at most ``first_s``, comes once a step."""
    if level < 2:
        return _rows(3 * [0.0 * backward], np.zeros(3))
    behind = scatter + (gather if level == 3 else 0.0)
    spared_s = first_s if level == 2 else 0.0 * first_s
    return Rows(
        np.stack([0.0 * behind, (1 - overlap) * behind, behind - overlap * backward]),
        np.zeros(3),
        np.stack([0.0 * spared_s, (1 - overlap) * spared_s, spared_s]),
    )


def _once(level: int, overlap: float, last_backward: Row, gather: Row, scatter: Row, across: Row) -> Rows:
    """Of synchronising the gradients and gathering for the first forward, what sticks out once a step."""
    if level == 0:
        first_s = float(scatter.min())
        rows = [(1 - overlap) * scatter, scatter - overlap * last_backward]
        return _rows(rows, np.array([overlap * first_s, 0.0]))
    gather_s, scatter_s = float(gather.min()), float(scatter.min())
    if level == 1:
        rows = [
            (1 - overlap) * (gather + scatter),
            (1 - overlap) * gather + scatter - overlap * last_backward,
        ]
        return _rows(rows, np.array([gather_s + overlap * scatter_s, gather_s]))
    first = (1 - overlap) * gather if level == 2 else 0.0 * gather
    return _rows([first, (1 - overlap) * across], np.full(2, gather_s + scatter_s))


def _combined(own: Row, sticking_out: Rows, moving: Row) -> Rows:
    """The time itself with what sticks out, whether or not moving activations takes longer."""
    weights = [own + row + more for row in sticking_out.weights for more in (0.0 * moving, moving)]
    return Rows(
        np.stack(weights), np.repeat(sticking_out.least, 2), np.repeat(sticking_out.spared, 2, axis=0)
    )
