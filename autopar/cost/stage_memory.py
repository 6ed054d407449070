"""Peak memory of one rank: of its one stage, or of all its virtual stages together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from autopar.cost.choice import BlockChoice
from autopar.cost.offload import has_host_state, host_state_bytes, on_device, share
from autopar.cost.parameter_state import (
    GRADIENT_BYTES,
    ParameterBytes,
    compute_bytes,
    optimizer_cost,
    parameter_bytes,
)
from autopar.cost.prediction import StageMemory
from autopar.cost.stage_time import owned_elements
from autopar.cost.training import Training
from autopar.plan.decisions import Precision


@dataclass(frozen=True, slots=True)
class StagePieces:
    """What one stage needs, before it is known how many micro-batches are in flight and what its rank holds
    besides; bytes.

    Attributes:
        state: kept all through the step on the device.
        host_state: likewise, in host memory.
        saved: of one micro-batch, from its forward to its backward.
        handed_on: likewise, sent to the next stage.
        running: most that lives inside a block while it runs, beyond what is saved.
        updating: temporaries of the update.
        reduced: buffer in which a block's gradients are reduced.
        messages: of one micro-batch, to and from the neighbours.
    """

    state: ParameterBytes
    host_state: int
    saved: int
    handed_on: int
    running: int
    updating: int
    reduced: int
    messages: int


def stage_pieces(
    blocks: Sequence[BlockChoice],
    training: Training,
    zero: int,
    repeated_elements: Sequence[int] = (),
    message_bytes: int = 0,
    handed_on_bytes: int = 0,
) -> StagePieces:
    """What a stage needs; arguments as those of ``stage_memory``."""
    owned, zero = owned_elements(blocks, repeated_elements), training.level(zero)
    trainable, frozen = sum(t for t, _ in owned), sum(f for _, f in owned)
    group, precision = training.group, training.precision
    largest = max(t for t, _ in owned)
    running = max(b.transient_bytes for b in blocks) + _gathered_bytes(owned, zero, precision)
    if "activations" in training.offload:
        # What a block saved is back on the device while its backward runs, and that of the block before it.
        saved = [b.saved_bytes for b in blocks]
        running += max((a + b for a, b in pairwise(saved)), default=saved[0])
    updating = optimizer_cost(training.optimizer).temporary_bytes * share(trainable, zero, training)
    state = parameter_bytes(trainable, frozen, zero, group, precision, training.optimizer)
    return StagePieces(
        state=on_device(state, training),
        host_state=host_state_bytes(trainable, frozen, zero, training),
        saved=sum(b.saved_bytes for b in blocks),
        handed_on=handed_on_bytes,
        running=running,
        updating=0 if has_host_state(training) else updating,
        # Gradients are flattened into a buffer per block to be reduced; messages are received before and sent
        # after the action that they belong to.
        reduced=largest * GRADIENT_BYTES if training.data > 1 else 0,
        messages=2 * message_bytes,
    )


def rank_memory(
    stages: Sequence[StagePieces], training: Training, in_flight: Sequence[Sequence[int]]
) -> StageMemory:
    """Peak memory of a rank with one or more stages.

    Args:
        in_flight: micro-batches in flight per stage, at each of the moments at which it may be the most.
    """
    states = [stage.state for stage in stages]
    offloads = "activations" in training.offload
    staying = [stage.handed_on + (0 if offloads else stage.saved) for stage in stages]
    leaving = [stage.saved for stage in stages]
    activations = max(_weighed(counts, staying) for counts in in_flight)
    return StageMemory(
        parameters_bytes=sum(state.parameters for state in states),
        gradients_bytes=sum(state.gradients for state in states),
        optimizer_bytes=sum(state.optimizer for state in states),
        activations_bytes=activations,
        # Activations are gone when the update runs.
        transient_bytes=max(
            max(stage.running for stage in stages), sum(stage.updating for stage in stages) - activations
        ),
        reserved_bytes=training.cluster.device.framework_reserved_bytes
        + max(stage.reduced for stage in stages)
        + sum(stage.messages for stage in stages),
        host_bytes=sum(stage.host_state for stage in stages)
        + (max(_weighed(counts, leaving) for counts in in_flight) if offloads else 0),
    )


def stage_memory(
    blocks: Sequence[BlockChoice],
    training: Training,
    zero: int,
    micro_batches_in_flight: int,
    repeated_elements: Sequence[int] = (),
    message_bytes: int = 0,
    handed_on_bytes: int = 0,
) -> StageMemory:
    """Peak memory of one rank that holds one stage.

    Args:
        blocks: choices of its blocks, in order.
        training: what all stages have in common.
        zero: ZeRO level of the stage.
        micro_batches_in_flight: whose saved activations it holds at once.
        repeated_elements: per block, trainable elements that an earlier block of the stage holds already.
        message_bytes: of one micro-batch's messages to and from its neighbours.
        handed_on_bytes: of the values that it sends on for one micro-batch; it keeps them until their
            gradient comes back.
    """
    pieces = stage_pieces(blocks, training, zero, repeated_elements, message_bytes, handed_on_bytes)
    return rank_memory((pieces,), training, ((micro_batches_in_flight,),))


def _weighed(counts: Sequence[int], sizes: Sequence[int]) -> int:
    return sum(count * size for count, size in zip(counts, sizes, strict=True))


def _gathered_bytes(owned: Sequence[tuple[int, int]], zero: int, precision: Precision) -> int:
    """Under ZeRO 3: whole parameters of a block and of the one prefetched, and the gradients before they
    are scattered."""
    if zero < 3:
        return 0
    sizes = [(trainable + frozen) * compute_bytes(precision) for trainable, frozen in owned]
    two = max((a + b for a, b in pairwise(sizes)), default=sizes[0])
    return two + max(trainable for trainable, _ in owned) * compute_bytes(precision)
