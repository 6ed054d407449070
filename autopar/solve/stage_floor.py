"""Least times of a run of blocks as a stage, whatever their options: what the step model adds to the sum of
its blocks (communication that sticks out, synchronisation, update) worked out for blocks that are as good at
everything as any of their options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autopar.cost.choice import BlockChoice, ParameterShare
from autopar.cost.layout import SharedParameter
from autopar.cost.stage_time import stage_seconds
from autopar.cost.training import Training
from autopar.solve.candidate import ChoiceTable


@dataclass(frozen=True, slots=True)
class StageFloor:
    """No options of a stage's blocks are quicker, part by part.

    Attributes:
        forward_s: of one micro-batch.
        backward_s: likewise, both halves.
        weight_s: likewise, the half that a split backward postpones.
        extra_s: of forward and backward, what is not the blocks' own.
        sync_s: once a step.
        update_s: once a step.
    """

    forward_s: float
    backward_s: float
    weight_s: float
    extra_s: float
    sync_s: float
    update_s: float


class StageFloors:
    """Floors of the segments of one table under one ZeRO level."""

    def __init__(self, table: ChoiceTable, training: Training, zero: int) -> None:
        self._table = table
        self._training = training
        self._zero = zero
        self._ideals = [_ideal(kind) for kind in table.kinds]
        self._least = [_least(kind, training) for kind in table.kinds]
        self._quickest = [
            _quickest(ideal, kind) for ideal, kind in zip(self._ideals, table.kinds, strict=True)
        ]
        self._known: dict[object, StageFloor] = {}

    def of(self, first: int, end: int) -> StageFloor:
        """Of the blocks from ``first`` up to and without ``end``."""
        kinds = self._table.blocks[first:end]
        repeated = repeated_elements(self._table.shared, first, end)
        key = (kinds, repeated)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._floor(kinds, repeated)
        return found

    def alone_s(self, block: int) -> float:
        """Forward and backward of one block by itself."""
        return sum(self._least[self._table.blocks[block]])

    def forward_alone_s(self, block: int) -> float:
        """Forward of one block by itself."""
        return self._least[self._table.blocks[block]][0]

    def of_one_rank_s(self, least_s: float, num_micro_batches: int) -> float:
        """Lower bound of forwards, backwards and synchronisation of a step of all blocks on one rank.

        What sticks out falls by no more than the compute beside it grows: so a micro-batch takes no less than
        the quickest options with what sticks out of these; and of what these leave to be synchronised, no
        more is hidden than the blocks are slower, which every micro-batch pays for.

        Args:
            least_s: forward and backward of all blocks for a micro-batch, at least.
        """
        first, end = 0, len(self._table.blocks)
        repeated = repeated_elements(self._table.shared, first, end)
        blocks = [self._quickest[kind] for kind in self._table.blocks]
        quick = stage_seconds(blocks, self._training, self._zero, repeated)
        own_s = sum(b.forward_s + b.backward_s for b in blocks)
        whole_s = max(least_s, quick.forward_s + quick.backward_s)
        sync_s = max(self.of(first, end).sync_s, quick.sync_s - (whole_s - own_s))
        return num_micro_batches * whole_s + sync_s

    def traffic_floor_s(self) -> float:
        """Under ZeRO 3: least forward and backward of all blocks, however they are cut into stages.

        Of Σ max(compute, gather beside it) over the blocks of a stage, both sums are lower bounds, and they
        add up over stages; likewise in the backward pass.
        """
        idle = [_idle(self._ideals[kind]) for kind in self._table.blocks]
        repeated = repeated_elements(self._table.shared, 0, len(idle))
        bare = stage_seconds(idle, self._training, self._zero, repeated)
        blocks = range(len(idle))
        forward_s = sum(self.forward_alone_s(block) for block in blocks)
        backward_s = sum(self.alone_s(block) for block in blocks) - forward_s
        return max(forward_s, bare.forward_s) + max(backward_s, bare.backward_s)

    def _floor(self, kinds: Sequence[int], repeated: tuple[int, ...]) -> StageFloor:
        blocks = [self._ideals[kind] for kind in kinds]
        seconds = stage_seconds(blocks, self._training, self._zero, repeated)
        # The slowest options hide most: what sticks out then, sticks out always.
        forward_extra_s = max(0.0, seconds.forward_s - sum(b.forward_s for b in blocks))
        backward_extra_s = max(0.0, seconds.backward_s - sum(b.backward_s for b in blocks))
        forward_s, input_s, weight_s = (sum(self._least[k][i] for k in kinds) for i in range(3))
        action_s = self._training.cluster.device.action_s if self._training.splits_backward else 0.0
        return StageFloor(
            forward_s + forward_extra_s,
            input_s + weight_s + backward_extra_s,
            weight_s + action_s,
            forward_extra_s + backward_extra_s,
            seconds.sync_s,
            seconds.update_s,
        )


def repeated_elements(shared: Sequence[SharedParameter], first: int, end: int) -> tuple[int, ...]:
    """Per block of a segment, elements of tied parameters that an earlier one of it holds; empty: none."""
    found: list[int] = []
    for parameter in shared:
        here = [block - first for block in parameter.blocks if first <= block < end]
        if len(here) > 1:
            found = found or [0] * (end - first)
            for position in here[1:]:
                found[position] += parameter.num_elements
    return tuple(found)


def option_seconds(choice: BlockChoice, training: Training) -> tuple[float, float, float]:
    """Forward, input half and weight half of the backward of a block."""
    weight_s = choice.backward_weight_s if training.splits_backward else 0.0
    return choice.forward_s, choice.backward_s - weight_s, weight_s


def _idle(block: BlockChoice) -> BlockChoice:
    """A block that hides nothing."""
    return replace(block, forward_compute_s=0.0, backward_compute_s=0.0, backward_weight_s=0.0, saved_bytes=0)


def _quickest(ideal: BlockChoice, kind: Sequence[BlockChoice]) -> BlockChoice:
    """A block as quick forwards as any option, and as quick backwards as any."""
    return replace(
        ideal,
        forward_compute_s=min(c.forward_s for c in kind),
        backward_compute_s=min(c.backward_s for c in kind),
        backward_weight_s=min(c.backward_weight_s for c in kind),
    )


def _least(kind: Sequence[BlockChoice], training: Training) -> tuple[float, float, float]:
    """Least forward, input half and weight half of the backward."""
    found = [option_seconds(choice, training) for choice in kind]
    return min(f for f, _, _ in found), min(i for _, i, _ in found), min(w for _, _, w in found)


def holding(choice: BlockChoice, trainable: int, frozen: int) -> BlockChoice:
    """A block with parameters of so many elements instead of its own."""
    shares = (
        ParameterShare("", "replicate", trainable, True),
        ParameterShare("", "replicate", frozen, False),
    )
    return replace(choice, parameters=shares)


def _ideal(kind: Sequence[BlockChoice]) -> BlockChoice:
    """A block that hides as much as any option, and holds, keeps and sends as little as any."""
    return replace(
        holding(kind[0], min(c.trainable_elements for c in kind), min(c.frozen_elements for c in kind)),
        forward_compute_s=max(c.forward_s for c in kind),
        forward_comm_s=0.0,
        backward_compute_s=max(c.backward_s for c in kind),
        backward_comm_s=0.0,
        saved_bytes=min(c.saved_bytes for c in kind),
        transient_bytes=min(c.transient_bytes for c in kind),
        output_bytes=min(c.output_bytes for c in kind),
        backward_weight_s=max(c.backward_weight_s for c in kind),
    )
