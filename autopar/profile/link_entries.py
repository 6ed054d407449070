"""What a cost-model file says of the links between the processes that were measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from autopar.hardware.device import Device
from autopar.hardware.link import CollectiveKind
from autopar.profile.entries import MEASURED, Document, borrowed, measured, rounded
from autopar.profile.settings import ProfileResult
from autopar.profile.spread import Spread


def intra_node(result: ProfileResult, base: Device) -> Document:
    """What joins the processes; borrowed from ``base`` where there is but one."""
    found = result.communication
    link = base.intra_node
    if not found.messages:
        return {
            "kind": link.kind,
            "bandwidth": borrowed(link.bytes_per_s / 1e9, "GB/s"),
            "ring_bandwidth": borrowed(link.ring_bytes_per_s / 1e9, "GB/s"),
            "latency": borrowed(link.latency_s * 1e6, "us"),
        }
    messages = [(size, spread.median_s) for size, spread in sorted(found.messages.items())]
    rates = {
        key: key[0].bus_factor(key[1]) * key[2] / spread.median_s for key, spread in found.collectives.items()
    }
    ring = max(rate for (kind, _, _), rate in rates.items() if kind is CollectiveKind.ALL_GATHER)
    document: Document = {
        "kind": "gloo over loopback" if result.settings.kind == "cpu" else link.kind,
        "bandwidth": measured(max(size / seconds for size, seconds in messages) / 1e9, "GB/s"),
        "ring_bandwidth": measured(ring / 1e9, "GB/s"),
        "latency": measured(messages[0][1] * 1e6, "us", f"message of {messages[0][0]} bytes"),
        "shared": False,
        "messages": {
            "size_unit": "B",
            "unit": "GB/s",
            "source": MEASURED,
            "note": "every rank sends to the next at once",
            "points": [[size, rounded(size / seconds / 1e9)] for size, seconds in messages],
        },
    }
    if found.messages_alone:
        document["messages_alone"] = {
            "size_unit": "B",
            "unit": "GB/s",
            "source": MEASURED,
            "note": "between two processes while the others wait",
            "points": [
                [size, rounded(size / spread.median_s / 1e9)]
                for size, spread in sorted(found.messages_alone.items())
            ],
        }
    for kind in dict.fromkeys(kind for kind, _, _ in rates):
        document[str(kind)] = [
            {
                "group": size,
                "size_unit": "B",
                "unit": "GB/s",
                "source": MEASURED,
                "note": f"all groups at once; within {_widest(found.collectives, kind, size):.0%}",
                "points": [
                    [num_bytes, rounded(rates[kind, size, num_bytes] / 1e9)]
                    for num_bytes in sorted(n for k, s, n in rates if (k, s) == (kind, size))
                ],
            }
            for size in sorted({s for k, s, _ in rates if k is kind})
        ]
    return document


def _widest(
    collectives: Mapping[tuple[CollectiveKind, int, int], Spread], kind: CollectiveKind, size: int
) -> float:
    return _largest(s.width for (k, n, _), s in collectives.items() if (k, n) == (kind, size))


def _largest(values: Iterable[float]) -> float:
    return max(values, default=0.0)
