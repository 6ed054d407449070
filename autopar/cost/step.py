"""What a step of a whole plan takes: the schedule played with its stages' times, and their memory. No torch.

    step = max over stages of (end of its last backward + gradient synchronisation that sticks out)
           + max over stages of (update)

because clipping by the global norm makes every stage wait for all gradients before any updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from autopar.cost.choice import BlockChoice
from autopar.cost.layout import Layout
from autopar.cost.parameter_state import (
    GRADIENT_BYTES,
    compute_bytes,
    optimizer_cost,
    parameter_bytes,
    update_s,
)
from autopar.cost.prediction import Prediction, StageMemory, StagePrediction
from autopar.cost.synchronisation import data_traffic, exposed
from autopar.hardware.cluster import Cluster
from autopar.hardware.link import CollectiveKind
from autopar.plan.decisions import Precision
from autopar.schedule.actions import in_flight, schedule_actions
from autopar.schedule.simulator import Timeline, simulate


@dataclass(frozen=True, slots=True)
class Training:
    """How the ranks of one stage train, whatever its blocks.

    Attributes:
        data: ranks on the data axis.
        tensor: ranks on the tensor axis.
        optimizer: ``adamw``, ``adam``, ``sgd`` or ``sgd-momentum``.
    """

    cluster: Cluster
    data: int
    tensor: int
    precision: Precision
    optimizer: str


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """Time of one stage.

    Attributes:
        forward_compute_s: of one micro-batch, as are the next three.
        forward_comm_s: exposed: collectives on the tensor axis and parameter gathers that stick out.
        backward_compute_s: with recompute.
        backward_comm_s: exposed, with gradient scatters that stick out.
        sync_s: once a step: gradient synchronisation after the last backward.
        update_s: once a step: the optimiser.
    """

    forward_compute_s: float
    forward_comm_s: float
    backward_compute_s: float
    backward_comm_s: float
    sync_s: float
    update_s: float

    @property
    def forward_s(self) -> float:
        """One micro-batch's forward."""
        return self.forward_compute_s + self.forward_comm_s

    @property
    def backward_s(self) -> float:
        """One micro-batch's backward."""
        return self.backward_compute_s + self.backward_comm_s

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
    owned = _owned_elements(blocks, repeated_elements)
    traffic = [
        data_traffic(trainable, frozen, training.data, training.tensor, training.precision, training.cluster)
        for trainable, frozen in owned
    ]
    sticking_out = exposed(zero, traffic, [b.forward_s for b in blocks], [b.backward_s for b in blocks])
    return StageSeconds(
        forward_compute_s=sum(b.forward_compute_s for b in blocks),
        forward_comm_s=sum(b.forward_comm_s for b in blocks) + sticking_out.forward_s,
        backward_compute_s=sum(b.backward_compute_s for b in blocks),
        backward_comm_s=sum(b.backward_comm_s for b in blocks) + sticking_out.backward_s,
        sync_s=sticking_out.step_s,
        update_s=update_s(
            sum(trainable for trainable, _ in owned),
            zero,
            training.data,
            training.precision,
            training.optimizer,
            training.cluster.device,
        ),
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
    """Peak memory of one rank of a stage.

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
    owned = _owned_elements(blocks, repeated_elements)
    trainable, frozen = sum(t for t, _ in owned), sum(f for _, f in owned)
    state = parameter_bytes(trainable, frozen, zero, training.data, training.precision, training.optimizer)
    activations = micro_batches_in_flight * (sum(b.saved_bytes for b in blocks) + handed_on_bytes)
    running = max(b.transient_bytes for b in blocks) + _gathered_bytes(owned, zero, training.precision)
    updated = -(-trainable // training.data) if zero >= 1 else trainable
    updating = optimizer_cost(training.optimizer).temporary_bytes * updated
    # Gradients are flattened into a buffer per block to be reduced; messages are received before and sent
    # after the action that they belong to.
    reduced = max(t for t, _ in owned) * GRADIENT_BYTES if training.data > 1 else 0
    return StageMemory(
        parameters_bytes=state.parameters,
        gradients_bytes=state.gradients,
        optimizer_bytes=state.optimizer,
        activations_bytes=activations,
        transient_bytes=max(running, updating - activations),
        reserved_bytes=training.cluster.device.framework_reserved_bytes + reduced + 2 * message_bytes,
    )


def play(layout: Layout, seconds: Sequence[StageSeconds], cluster: Cluster) -> Timeline:
    """The pipeline part of a step: every action with its start and end."""
    stride = layout.data * layout.tensor
    p2p_s = [
        cluster.p2p_s(layout.boundary_bytes(i), i * stride, (i + 1) * stride)
        for i in range(len(layout.stages) - 1)
    ]
    actions = schedule_actions(layout.schedule, len(layout.stages), layout.num_micro_batches, layout.virtual)
    return simulate(actions, [s.forward_s for s in seconds], [s.backward_s for s in seconds], p2p_s)


def predict(layout: Layout, cluster: Cluster, memory_limit_bytes: int) -> Prediction:
    """Step time, throughput, MFU and memory of a plan.

    Args:
        memory_limit_bytes: of a device; only recorded, for ``Prediction.fits``.

    Raises:
        UsageError: the schedule or the optimiser is not supported.
    """
    training = Training(cluster, layout.data, layout.tensor, layout.precision, layout.optimizer)
    stages = range(len(layout.stages))
    seconds = [
        stage_seconds(layout.stages[s], training, layout.zero[s], layout.repeated_elements(s)) for s in stages
    ]
    tied_s = _tied_s(layout, cluster)
    timeline = play(layout, seconds, cluster)
    synchronised_s = max(timeline.end_s(s) + seconds[s].sync_s + tied_s[s] for s in stages)
    step_s = synchronised_s + max(s.update_s for s in seconds)
    memory = [layout_memory(layout, training, s) for s in stages]
    model_flops = sum(b.model_flops for blocks in layout.stages for b in blocks)
    step_flops = 3 * model_flops * layout.num_micro_batches * layout.data
    peak = layout.num_devices * cluster.device.peak(layout.precision)
    return Prediction(
        step_time_s=step_s,
        samples_per_s=layout.global_batch / step_s,
        mfu=step_flops / (step_s * peak),
        peak_memory_bytes=max(m.total_bytes for m in memory),
        memory_limit_bytes=memory_limit_bytes,
        stages=tuple(
            _stage_prediction(seconds[s], tied_s[s], layout.num_micro_batches, step_s, memory[s])
            for s in stages
        ),
    )


def layout_memory(layout: Layout, training: Training, stage: int) -> StageMemory:
    """Peak memory of one stage of a whole plan."""
    num_stages = len(layout.stages)
    sent = [layout.boundary_bytes(boundary) for boundary in range(num_stages - 1)] + [0]
    return stage_memory(
        layout.stages[stage],
        training,
        layout.zero[stage],
        in_flight(layout.schedule, num_stages, layout.num_micro_batches, stage),
        layout.repeated_elements(stage),
        message_bytes=sent[stage] + (sent[stage - 1] if stage else 0),
        handed_on_bytes=sent[stage],
    )


def _stage_prediction(
    seconds: StageSeconds, tied_s: float, num_micro_batches: int, step_s: float, memory: StageMemory
) -> StagePrediction:
    compute_s = (
        num_micro_batches * (seconds.forward_compute_s + seconds.backward_compute_s) + seconds.update_s
    )
    comm_s = num_micro_batches * (seconds.forward_comm_s + seconds.backward_comm_s) + seconds.sync_s + tied_s
    return StagePrediction(compute_s, comm_s, max(0.0, step_s - compute_s - comm_s), memory)


def _owned_elements(blocks: Sequence[BlockChoice], repeated_elements: Sequence[int]) -> list[tuple[int, int]]:
    """Per block, (trainable, frozen) elements that it is the first of the stage to hold."""
    result = []
    for i, block in enumerate(blocks):
        trainable = sum(p.num_elements for p in block.parameters if p.trainable)
        frozen = sum(p.num_elements for p in block.parameters if not p.trainable)
        repeated = repeated_elements[i] if repeated_elements else 0
        result.append((max(0, trainable - repeated), frozen))
    return result


def _gathered_bytes(owned: Sequence[tuple[int, int]], zero: int, precision: Precision) -> int:
    """Under ZeRO 3: whole parameters of a block and of the one prefetched, and the gradients before they
    are scattered."""
    if zero < 3:
        return 0
    sizes = [(trainable + frozen) * compute_bytes(precision) for trainable, frozen in owned]
    two = max((a + b for a, b in pairwise(sizes)), default=sizes[0])
    return two + max(trainable for trainable, _ in owned) * compute_bytes(precision)


def _tied_s(layout: Layout, cluster: Cluster) -> list[float]:
    """Per stage, adding up the gradients of parameters that several stages hold."""
    result = [0.0] * len(layout.stages)
    stride = layout.data * layout.tensor
    for parameter in layout.shared:
        holders = layout.holders(parameter)
        if len(holders) < 2 or not parameter.trainable:
            continue
        sharded = all(layout.zero[s] >= 2 for s in holders)
        num_bytes = parameter.num_elements * GRADIENT_BYTES / (layout.data if sharded else 1)
        span = stride * (holders[-1] - holders[0]) // (len(holders) - 1)
        for stage in holders:
            result[stage] += cluster.collective_s(CollectiveKind.ALL_REDUCE, num_bytes, len(holders), span)
    return result
