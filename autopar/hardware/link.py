"""Links between devices and what collectives reach on them.

Bus bandwidth is that of nccl-tests (doc/PERFORMANCE.md there): bytes x factor(kind, n) / time, which for a
ring is the rate on each link and therefore comparable across group sizes.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from autopar.hardware.tables import SizeTable


class CollectiveKind(StrEnum):
    """Collectives, with the meaning of their number of bytes."""

    ALL_REDUCE = "all_reduce"  # bytes of the tensor
    ALL_GATHER = "all_gather"  # bytes of the gathered output
    REDUCE_SCATTER = "reduce_scatter"  # bytes of one rank's whole input
    ALL_TO_ALL = "all_to_all"  # bytes of one rank's whole input
    BROADCAST = "broadcast"  # bytes of the tensor

    def bus_factor(self, num_ranks: int) -> float:
        """Bytes that pass each link per byte of the collective (nccl-tests doc/PERFORMANCE.md)."""
        if self is CollectiveKind.ALL_REDUCE:
            return 2 * (num_ranks - 1) / num_ranks
        if self is CollectiveKind.BROADCAST:
            return 1.0
        return (num_ranks - 1) / num_ranks


@dataclass(frozen=True, slots=True)
class BusCurve:
    """Bus bandwidth of a collective of one group size, by payload.

    Attributes:
        num_ranks: size of the group measured.
        bytes_per_s: by payload in bytes.
        kind: the collective measured.
    """

    num_ranks: int
    bytes_per_s: SizeTable
    kind: CollectiveKind = CollectiveKind.ALL_REDUCE

    def seconds(self, num_bytes: float, latency_s: float) -> float:
        """Time of the collective: linear in the bytes between measured payloads, from the latency below the
        first."""
        factor = self.kind.bus_factor(self.num_ranks)
        points = self.bytes_per_s.points
        i = bisect_left(points, (num_bytes,))
        if i == len(points):
            return factor * num_bytes / points[-1][1]
        last_bytes, last_rate = points[i]
        last_s = factor * last_bytes / last_rate
        if i == 0:
            first_bytes, first_s = 0.0, min(latency_s, last_s)
        else:
            first_bytes, first_s = points[i - 1][0], factor * points[i - 1][0] / points[i - 1][1]
        return first_s + (last_s - first_s) * (num_bytes - first_bytes) / (last_bytes - first_bytes)


@dataclass(frozen=True, slots=True)
class IntraNodeLink:
    """What joins the devices of a node.

    Attributes:
        kind: e.g. ``NVLink3``.
        bytes_per_s: of a device, one direction, nominal.
        ring_bytes_per_s: bus bandwidth that large ring collectives reach (all-gather and reduce-scatter never
            exceed it; switch-offloaded all-reduce may).
        latency_s: of a point-to-point message, and of each doubling of a group in a small collective.
        curves: measured all-reduce curves, by ascending group size; may be empty.
        shared: whether concurrent groups of a node divide the bandwidth (PCIe through the host, loopback) or
            each device has a link of its own into a switch.
        own_curves: measured curves of other collectives than all-reduce, by ascending group size; what is not
            measured follows from the all-reduce.
        messages: bytes/s of a point-to-point message by its bytes, latency included; None: from ``latency_s``
            and the bandwidth.
        messages_alone: likewise, where the processors of the node have nothing else to do; None: as always.
    """

    kind: str
    bytes_per_s: float
    ring_bytes_per_s: float
    latency_s: float
    curves: tuple[BusCurve, ...] = ()
    shared: bool = False
    own_curves: Mapping[CollectiveKind, tuple[BusCurve, ...]] = field(default_factory=dict)
    messages: SizeTable | None = None
    messages_alone: SizeTable | None = None

    def collective_s(self, kind: CollectiveKind, num_bytes: float, num_ranks: int, num_active: int) -> float:
        """Time of a collective of ``num_ranks`` ranks while ``num_active`` devices of the node communicate.

        A ring all-gather or reduce-scatter takes half the steps of an all-reduce of the same payload, so it
        has the bus bandwidth of the all-reduce curve at that payload, but no more than the ring's.
        """
        latency_s = self.latency_s * math.ceil(math.log2(num_ranks))
        # On a shared medium a group is slowed by its neighbours: together they load it like one larger group.
        load = max(num_ranks, num_active) if self.shared else num_ranks
        if own := self.own_curves.get(kind):
            curve = next((c for c in own if c.num_ranks >= load), own[-1])
            share = kind.bus_factor(num_ranks) / kind.bus_factor(curve.num_ranks)
            return share * curve.seconds(num_bytes, latency_s)
        if not self.curves:
            return latency_s + kind.bus_factor(num_ranks) * num_bytes / self.ring_bytes_per_s
        curve = next((c for c in self.curves if c.num_ranks >= load), self.curves[-1])
        all_reduce_s = curve.seconds(num_bytes, latency_s)
        share = kind.bus_factor(num_ranks) / CollectiveKind.ALL_REDUCE.bus_factor(curve.num_ranks)
        if kind is CollectiveKind.ALL_REDUCE:
            return all_reduce_s * share
        ring_s = kind.bus_factor(num_ranks) * num_bytes / self.ring_bytes_per_s
        return max(all_reduce_s * share, ring_s)

    def p2p_s(self, num_bytes: float, busy: float = 1.0) -> float:
        """Time of one message between two devices of a node.

        Args:
            busy: fraction of the node's processors that compute meanwhile.
        """
        if self.messages is not None:
            busy_s = self.messages.seconds(num_bytes)
            if self.messages_alone is None:
                return busy_s
            alone_s = min(busy_s, self.messages_alone.seconds(num_bytes))
            return alone_s + busy * (busy_s - alone_s)
        rate = min(self.bytes_per_s, self.ring_bytes_per_s) if self.shared else self.bytes_per_s * 0.8
        return self.latency_s + num_bytes / rate


@dataclass(frozen=True, slots=True)
class NetworkLink:
    """What joins the nodes, as one device's share of its node's network cards.

    Attributes:
        kind: e.g. ``8x HDR200 InfiniBand``.
        bytes_per_s: of a device, one direction, nominal.
        efficiency: fraction that large messages reach.
        latency_s: of a message.
    """

    kind: str
    bytes_per_s: float
    efficiency: float
    latency_s: float

    @property
    def effective_bytes_per_s(self) -> float:
        """What large messages of one device reach."""
        return self.bytes_per_s * self.efficiency


@dataclass(frozen=True, slots=True)
class HostLink:
    """What joins a device and its host.

    Attributes:
        bytes_per_s: of a device, one direction.
        memory_bytes: host memory of a node.
        memory_bytes_per_s: what memory-bound work of all cores of a node reaches. The default is an estimate:
            half of two sockets with eight channels of DDR4-3200, 25.6 GB/s each.
    """

    bytes_per_s: float
    memory_bytes: int
    memory_bytes_per_s: float = 200e9
