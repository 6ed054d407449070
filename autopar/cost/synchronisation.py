"""Traffic of the data axis, and how much of it sticks out from behind the compute that it overlaps.

Per block, because a block is the unit that is gathered, resharded and reduced. ZeRO 0 adds up gradients once
a step while the last micro-batch's backward still runs; ZeRO 3 gathers a block's parameters before its
forward and again before its backward, one block ahead, and scatters its gradients behind the backward of the
block before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autopar.cost.parameter_state import GRADIENT_BYTES, compute_bytes
from autopar.hardware.cluster import Cluster
from autopar.hardware.link import CollectiveKind
from autopar.plan.decisions import Precision


@dataclass(frozen=True, slots=True)
class DataTraffic:
    """Collectives on the data axis for one block, seconds each.

    Attributes:
        gather_s: its parameters in the compute dtype.
        scatter_s: its gradients in fp32, reduce-scattered.
        reduce_s: its gradients in fp32, all-reduced.
    """

    gather_s: float
    scatter_s: float
    reduce_s: float


@dataclass(frozen=True, slots=True)
class Exposed:
    """Seconds of data-axis communication that no compute hides.

    Attributes:
        forward_s: of every micro-batch's forward.
        backward_s: of every micro-batch's backward.
        step_s: once a step.
    """

    forward_s: float
    backward_s: float
    step_s: float


def data_traffic(
    trainable: int, frozen: int, data: int, tensor: int, precision: Precision, cluster: Cluster
) -> DataTraffic:
    """Collectives on the data axis for a block with so many local elements."""
    held = (trainable + frozen) * compute_bytes(precision)
    gradient = trainable * GRADIENT_BYTES
    return DataTraffic(
        gather_s=cluster.collective_s(CollectiveKind.ALL_GATHER, held, data, tensor),
        scatter_s=cluster.collective_s(CollectiveKind.REDUCE_SCATTER, gradient, data, tensor),
        reduce_s=cluster.collective_s(CollectiveKind.ALL_REDUCE, gradient, data, tensor),
    )


def exposed(
    zero: int, traffic: Sequence[DataTraffic], forward_s: Sequence[float], backward_s: Sequence[float]
) -> Exposed:
    """What sticks out, for the blocks of a stage in order with their times per micro-batch."""
    gathers = [t.gather_s for t in traffic]
    scatters = [t.scatter_s for t in traffic]
    if zero == 0:
        return Exposed(0.0, 0.0, _tail(backward_s, [t.reduce_s for t in traffic]))
    # The first block's gather hides behind the end of the micro-batch before; the first of a step cannot.
    forward = _leftover(forward_s, gathers[1:] + gathers[:1])
    if zero == 1:
        return Exposed(0.0, 0.0, gathers[0] + forward + _tail(backward_s, scatters))
    if zero == 2:
        backward = _leftover(backward_s[::-1], [0.0, *scatters[:0:-1]])
        return Exposed(0.0, backward, gathers[0] + forward + scatters[0])
    behind = [gather + scatter for gather, scatter in zip(_ahead(gathers), _behind(scatters), strict=True)]
    return Exposed(forward, _leftover(backward_s[::-1], behind), gathers[0] + scatters[0])


def _leftover(compute_s: Sequence[float], hidden_s: Sequence[float]) -> float:
    """Time of pieces of communication beyond that of the pieces of compute that they run beside."""
    return sum(max(0.0, hidden - compute) for compute, hidden in zip(compute_s, hidden_s, strict=True))


def _tail(backward_s: Sequence[float], sync_s: Sequence[float]) -> float:
    """Time after the last backward until every block's gradients, sent in order of completion, are in
    sync."""
    computed = sent = 0.0
    for block_s, block_sync_s in zip(reversed(backward_s), reversed(sync_s), strict=True):
        computed += block_s
        sent = max(sent, computed) + block_sync_s
    return sent - computed


def _ahead(gathers: Sequence[float]) -> list[float]:
    """Beside the backward of each block, last first: the gather of the block before it (of the last
    again)."""
    return [*gathers[-2::-1], gathers[-1]]


def _behind(scatters: Sequence[float]) -> list[float]:
    """Beside the backward of each block, last first: the scatter of the block after it (of the first
    before)."""
    return [scatters[0], *scatters[:0:-1]]
