"""Traffic of the data axis, and how much of it sticks out from behind the compute that it overlaps.

Per block, because a block is the unit that is gathered, resharded and reduced. ZeRO 0 adds up gradients once
a step while the last micro-batch's backward still runs; ZeRO 3 gathers a block's parameters before its
forward and again before its backward, one block ahead, and scatters its gradients behind the backward of the
block before it. Where ZeRO divides among a part of the data axis (HSDP), gathers and scatters stay inside the
shard group, and once a step each rank adds up its shard of the gradients with its peers of the other groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autopar.cost.parameter_state import GRADIENT_BYTES, MASTER_BYTES, compute_bytes
from autopar.cost.training import Training
from autopar.hardware.link import CollectiveKind


@dataclass(frozen=True, slots=True)
class DataTraffic:
    """Collectives on the data axis for one block, seconds each.

    Attributes:
        gather_s: its parameters in the compute dtype, inside a shard group.
        scatter_s: its gradients in fp32, reduce-scattered inside a shard group.
        reduce_s: its gradients in fp32, all-reduced over the whole axis.
        across_s: one rank's shard of its gradients, all-reduced over the shard groups.
    """

    gather_s: float
    scatter_s: float
    reduce_s: float
    across_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Exposed:
    """Seconds of data-axis communication that no compute hides.

    Attributes:
        forward_s: of every micro-batch's forward.
        backward_s: of every micro-batch's backward.
        step_s: once a step.
        tail_s: the part of it that follows the last backward.
        hidden_s: what runs beside the last backward instead of following it.
    """

    forward_s: float
    backward_s: float
    step_s: float
    tail_s: float = 0.0
    hidden_s: float = 0.0


def data_traffic(trainable: int, frozen: int, training: Training) -> DataTraffic:
    """Collectives on the data axis for a block with so many local elements."""
    cluster, group, stride = training.cluster, training.group, training.stride
    held = (trainable + frozen) * compute_bytes(training.precision)
    gradient = trainable * GRADIENT_BYTES
    gather_s = cluster.collective_s(CollectiveKind.ALL_GATHER, held, group, stride)
    scatter_s = cluster.collective_s(CollectiveKind.REDUCE_SCATTER, gradient, group, stride)
    if "parameters" in training.offload:
        # Each rank's shard of the masters comes up from the host before it is gathered, and its shard of the
        # gradients goes down after it is scattered.
        gather_s += training.host_s((trainable + frozen) * MASTER_BYTES / group)
        scatter_s += training.host_s(gradient / group)
    return DataTraffic(
        gather_s=gather_s,
        scatter_s=scatter_s,
        reduce_s=cluster.collective_s(CollectiveKind.ALL_REDUCE, gradient, training.data, stride),
        across_s=cluster.collective_s(
            CollectiveKind.ALL_REDUCE, gradient / group, training.num_groups, stride * group
        ),
    )


def exposed(
    zero: int,
    traffic: Sequence[DataTraffic],
    forward_s: Sequence[float],
    backward_s: Sequence[float],
    overlap: float = 1.0,
    last_backward_s: Sequence[float] | None = None,
) -> Exposed:
    """What sticks out, for the blocks of a stage in order with their times per micro-batch.

    Args:
        overlap: fraction of the communication that can run beside compute (``Device.overlap``).
        last_backward_s: compute of the step's last backward that gradients can hide behind, where it is not
            ``backward_s``.
    """
    last_s = backward_s if last_backward_s is None else last_backward_s
    hiding = _exposed(zero, traffic, forward_s, backward_s, last_s)
    idle = [0.0] * len(traffic)
    bare = _exposed(zero, traffic, idle, idle, idle)
    hidden_s = overlap * (bare.tail_s - hiding.tail_s)
    if overlap == 1.0:
        return replace(hiding, hidden_s=hidden_s)
    return Exposed(
        overlap * hiding.forward_s + (1 - overlap) * bare.forward_s,
        overlap * hiding.backward_s + (1 - overlap) * bare.backward_s,
        overlap * hiding.step_s + (1 - overlap) * bare.step_s,
        overlap * hiding.tail_s + (1 - overlap) * bare.tail_s,
        hidden_s,
    )


def sent_s(zero: int, traffic: Sequence[DataTraffic], num_micro_batches: int) -> float:
    """What all collectives of a step take, one after the other and whatever runs beside them."""
    gathers, scatters = sum(t.gather_s for t in traffic), sum(t.scatter_s for t in traffic)
    if zero == 0:
        return sum(t.reduce_s for t in traffic)
    num_gathers, num_scatters = (
        2 * num_micro_batches if zero == 3 else 1,
        num_micro_batches if zero >= 2 else 1,
    )
    return num_gathers * gathers + num_scatters * scatters + sum(t.across_s for t in traffic)


def _exposed(
    zero: int,
    traffic: Sequence[DataTraffic],
    forward_s: Sequence[float],
    backward_s: Sequence[float],
    last_s: Sequence[float],
) -> Exposed:
    gathers = [t.gather_s for t in traffic]
    scatters = [t.scatter_s for t in traffic]
    across = [t.across_s for t in traffic]
    if zero == 0:
        tail_s = _tail(last_s, [t.reduce_s for t in traffic])
        return Exposed(0.0, 0.0, tail_s, tail_s)
    # The first block's gather hides behind the end of the micro-batch before; the first of a step cannot.
    forward = _leftover(forward_s, gathers[1:] + gathers[:1])
    if zero == 1:
        tail_s = _tail(last_s, scatters, across)
        return Exposed(0.0, 0.0, gathers[0] + forward + tail_s, tail_s)
    # Gradients are scattered in every micro-batch; over the groups they are added up in the last alone.
    tail_s = _tail(last_s, across)
    once = gathers[0] + scatters[0] + tail_s
    if zero == 2:
        backward = _leftover(backward_s[::-1], [0.0, *scatters[:0:-1]])
        return Exposed(0.0, backward, once + forward, tail_s)
    behind = [gather + scatter for gather, scatter in zip(_ahead(gathers), _behind(scatters), strict=True)]
    return Exposed(forward, _leftover(backward_s[::-1], behind), once, tail_s)


def _leftover(compute_s: Sequence[float], hidden_s: Sequence[float]) -> float:
    """Time of pieces of communication beyond that of the pieces of compute that they run beside."""
    return sum(max(0.0, hidden - compute) for compute, hidden in zip(compute_s, hidden_s, strict=True))


def _tail(backward_s: Sequence[float], sync_s: Sequence[float], then_s: Sequence[float] = ()) -> float:
    """Time after the last backward until every block's gradients, sent in order of completion, are in sync.

    Args:
        then_s: per block, of a second collective on other links, which follows the first.
    """
    computed = sent = finished = 0.0
    second = reversed(then_s) if then_s else iter([0.0] * len(sync_s))
    for block_s, first_s, next_s in zip(reversed(backward_s), reversed(sync_s), second, strict=True):
        computed += block_s
        sent = max(sent, computed) + first_s
        finished = max(finished, sent) + next_s
    return finished - computed


def _ahead(gathers: Sequence[float]) -> list[float]:
    """Beside the backward of each block, last first: the gather of the block before it (of the last
    again)."""
    return [*gathers[-2::-1], gathers[-1]]


def _behind(scatters: Sequence[float]) -> list[float]:
    """Beside the backward of each block, last first: the scatter of the block after it (of the first
    before)."""
    return [scatters[0], *scatters[:0:-1]]
