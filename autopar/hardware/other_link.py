"""A link with other numbers than a device's usual one, and what was measured on that one carried over.

A time that was measured has two parts: its bytes at the best rate of the curve, and the rest (latency,
protocols, the host). Another bandwidth changes the first part, another latency the second: a faster link is
never slower, and the usual numbers give the usual times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from autopar.hardware.link import BusCurve, IntraNodeLink
from autopar.hardware.tables import SizeTable


def with_other_numbers(
    link: IntraNodeLink,
    bytes_per_s: float | None = None,
    ring_bytes_per_s: float | None = None,
    latency_s: float | None = None,
) -> IntraNodeLink:
    """The link with the numbers that are given.

    Args:
        link: the usual one, with what was measured on it.
        bytes_per_s: of a device, one direction, nominal.
        ring_bytes_per_s: that large ring collectives reach; by default in proportion to the nominal.
        latency_s: of a message, and of each doubling of a group.
    """
    nominal = bytes_per_s or link.bytes_per_s
    ring = ring_bytes_per_s or link.ring_bytes_per_s * nominal / link.bytes_per_s
    other = replace(link, bytes_per_s=nominal, ring_bytes_per_s=ring, latency_s=latency_s or link.latency_s)
    rings = _Change(ring / link.ring_bytes_per_s, link.latency_s, other.latency_s)
    messages = replace(rings, factor=_message_rate(other) / _message_rate(link))
    return replace(
        other,
        curves=tuple(map(rings.curve, link.curves)),
        own_curves={kind: tuple(map(rings.curve, curves)) for kind, curves in link.own_curves.items()},
        messages=link.messages and messages.rates(link.messages),
        messages_alone=link.messages_alone and messages.rates(link.messages_alone),
    )


def _message_rate(link: IntraNodeLink) -> float:
    """What messages follow: on a shared medium they pass what rings pass."""
    return min(link.bytes_per_s, link.ring_bytes_per_s) if link.shared else link.bytes_per_s


@dataclass(frozen=True, slots=True)
class _Change:
    """A bandwidth ``factor`` times as high, and a latency of ``after_s`` instead of ``before_s``."""

    factor: float
    before_s: float
    after_s: float

    def curve(self, curve: BusCurve) -> BusCurve:
        """A collective, whose latency grows with the doublings of its group."""
        bus_factor = curve.kind.bus_factor(curve.num_ranks)
        doublings = math.ceil(math.log2(curve.num_ranks))
        return replace(curve, bytes_per_s=self.rates(curve.bytes_per_s, bus_factor, doublings))

    def rates(self, table: SizeTable, bus_factor: float = 1.0, latencies: int = 1) -> SizeTable:
        """Bytes/s by payload.

        Args:
            table: as measured; its times hold the latency.
            bus_factor: bytes that pass a link for each byte of the payload.
            latencies: how often the latency is in each time.
        """
        if self.factor == 1 and self.before_s == self.after_s:
            return table
        best = max(rate for _, rate in table.points)
        points = []
        for size, rate in table.points:
            num_bytes = bus_factor * size
            rest_s = num_bytes / rate - num_bytes / best
            # A lower latency leaves no less than itself of a rest that held it.
            rest_s = max(
                rest_s + latencies * (self.after_s - self.before_s), min(rest_s, latencies * self.after_s)
            )
            points.append((size, num_bytes / (num_bytes / best / self.factor + rest_s)))
        return SizeTable(tuple(points))
