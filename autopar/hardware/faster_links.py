"""A cluster whose links are faster or slower: what would the step take?"""

from __future__ import annotations

from dataclasses import replace

from autopar.hardware.cluster import Cluster
from autopar.hardware.link import BusCurve, IntraNodeLink
from autopar.hardware.tables import SizeTable


def with_faster_links(cluster: Cluster, factor: float) -> Cluster:
    """The cluster with ``factor`` times the bandwidth inside and between nodes; latencies stay."""
    network = replace(cluster.network, bytes_per_s=cluster.network.bytes_per_s * factor)
    return replace(cluster, intra_node=_faster(cluster.intra_node, factor), network=network)


def _faster(link: IntraNodeLink, factor: float) -> IntraNodeLink:
    return replace(
        link,
        bytes_per_s=link.bytes_per_s * factor,
        ring_bytes_per_s=link.ring_bytes_per_s * factor,
        curves=_curves(link.curves, factor),
        own_curves={kind: _curves(curves, factor) for kind, curves in link.own_curves.items()},
        messages=None if link.messages is None else _rates(link.messages, factor),
        messages_alone=None if link.messages_alone is None else _rates(link.messages_alone, factor),
    )


def _curves(curves: tuple[BusCurve, ...], factor: float) -> tuple[BusCurve, ...]:
    return tuple(replace(curve, bytes_per_s=_rates(curve.bytes_per_s, factor)) for curve in curves)


def _rates(table: SizeTable, factor: float) -> SizeTable:
    return replace(table, points=tuple((size, rate * factor) for size, rate in table.points))
