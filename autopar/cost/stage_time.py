"""What the blocks of one stage take: per micro-batch and once a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autopar.cost.choice import BlockChoice
from autopar.cost.offload import activations_s, step_update_s
from autopar.cost.passes import Passes
from autopar.cost.synchronisation import DataTraffic, data_traffic, exposed
from autopar.cost.training import Training


@dataclass(frozen=True, slots=True)
class StageSeconds(Passes):
    """Time of one stage.

    Attributes:
        forward_compute_s: of one micro-batch, as are the next three.
        forward_comm_s: exposed: collectives on the tensor axis, parameter gathers and activations on their
            way to the host that stick out.
        backward_compute_s: with recompute.
        backward_comm_s: exposed, with gradient scatters that stick out.
        sync_s: once a step: gradient synchronisation after the last backward.
        update_s: once a step: the optimiser.
        weight_s: the part of ``backward_compute_s`` that a split backward pass puts off.
        sync_hidden_s: once a step: gradient synchronisation beside the last backward.
    """

    forward_compute_s: float
    forward_comm_s: float
    backward_compute_s: float
    backward_comm_s: float
    sync_s: float
    update_s: float
    weight_s: float = 0.0
    sync_hidden_s: float = 0.0

    @property
    def once_s(self) -> float:
        """What is paid once a step."""
        return self.sync_s + self.update_s


def stage_seconds(
    blocks: Sequence[BlockChoice], training: Training, zero: int, repeated_elements: Sequence[int] = ()
) -> StageSeconds:
    """Time of a stage.

    Args:
        blocks: choices of its blocks, in order.
        training: what all stages have in common.
        zero: ZeRO level of the stage.
        repeated_elements: per block, trainable elements that an earlier block of the stage holds already.
    """
    owned, zero = owned_elements(blocks, repeated_elements), training.level(zero)
    device = training.cluster.device
    weight_s = sum(b.backward_weight_s for b in blocks) if training.splits_backward else 0.0
    sticking_out = exposed(
        zero,
        stage_traffic(owned, training),
        [b.forward_s for b in blocks],
        [b.backward_s for b in blocks],
        device.overlap,
        # Gradients are complete when the second half of a split backward is: nothing is left to hide them.
        [0.0] * len(blocks) if training.splits_backward else None,
    )
    down_s, up_s = activations_s(blocks, training)
    num_backwards = 2 if training.splits_backward else 1
    action_s = training.action_s(zero)
    return StageSeconds(
        forward_compute_s=sum(b.forward_compute_s for b in blocks) + action_s,
        forward_comm_s=sum(b.forward_comm_s for b in blocks) + sticking_out.forward_s + down_s,
        backward_compute_s=sum(b.backward_compute_s for b in blocks) + num_backwards * action_s,
        backward_comm_s=sum(b.backward_comm_s for b in blocks) + sticking_out.backward_s + up_s,
        sync_s=sticking_out.step_s,
        update_s=step_update_s(_updated_elements(blocks, owned), zero, training) + training.step_s(zero),
        weight_s=weight_s + action_s if training.splits_backward else 0.0,
        sync_hidden_s=sticking_out.hidden_s,
    )


def owned_elements(blocks: Sequence[BlockChoice], repeated_elements: Sequence[int]) -> list[tuple[int, int]]:
    """Per block, (trainable, frozen) elements that it is the first of the stage to hold."""
    if not repeated_elements:
        return [(block.trainable_elements, block.frozen_elements) for block in blocks]
    return [
        (max(0, block.trainable_elements - repeated), block.frozen_elements)
        for block, repeated in zip(blocks, repeated_elements, strict=True)
    ]


def _updated_elements(blocks: Sequence[BlockChoice], owned: Sequence[tuple[int, int]]) -> int:
    """Elements that a stage updates, each as many times as it takes longer than usual."""
    return round(sum(b.update_weight * trainable for b, (trainable, _) in zip(blocks, owned, strict=True)))


def stage_traffic(owned: Sequence[tuple[int, int]], training: Training) -> list[DataTraffic]:
    """Collectives on the data axis of blocks with so many (trainable, frozen) elements."""
    known = {sizes: data_traffic(*sizes, training) for sizes in dict.fromkeys(owned)}
    return [known[sizes] for sizes in owned]
