"""Links with other numbers than the usual ones keep what was measured."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import Cluster, make_cluster
from autopar.hardware.link import BusCurve, CollectiveKind, IntraNodeLink
from autopar.hardware.other_link import with_other_numbers
from autopar.hardware.read_cluster import load_cluster
from autopar.hardware.tables import SizeTable

DEVICES = ("a100-sxm-80gb", "h100-sxm-80gb", "rtx4090-24gb", "t4-16gb", "cpu")
FACTORS = (0.1, 0.5, 0.9, 0.999, 1.0, 1.001, 1.5, 10.0)
SIZES = (2.0**14, 2.0**20, 2.0**24, 2.0**28)


def profiled() -> IntraNodeLink:
    """A link with everything measured that `autopar profile` measures."""
    rates = SizeTable(((4096.0, 0.1e9), (1e6, 3e9), (1e8, 2.5e9)))
    own = {CollectiveKind.ALL_GATHER: (BusCurve(4, rates, CollectiveKind.ALL_GATHER),)}
    alone = SizeTable(((4096.0, 0.2e9), (1e8, 4e9)))
    return IntraNodeLink("loopback", 4e9, 3e9, 10e-6, (BusCurve(4, rates),), False, own, rates, alone)


def links() -> list[IntraNodeLink]:
    return [profiled(), *(load_device(name).intra_node for name in DEVICES)]


def times(link: IntraNodeLink) -> list[float]:
    """Of collectives and messages of several sizes."""
    cluster = replace(make_cluster(load_device("cpu"), 1, 8), intra_node=link)
    return [seconds for num_bytes in SIZES for seconds in _times(cluster, num_bytes)]


def _times(cluster: Cluster, num_bytes: float) -> list[float]:
    collectives = [
        cluster.collective_s(kind, num_bytes, size) for kind in CollectiveKind for size in (2, 4, 8)
    ]
    return [*collectives, *(cluster.intra_node.p2p_s(num_bytes, busy) for busy in (0.0, 1.0))]


@pytest.mark.parametrize("link", links(), ids=lambda link: link.kind)
def test_the_usual_numbers_change_nothing(link: IntraNodeLink) -> None:
    assert with_other_numbers(link) == link
    same = with_other_numbers(link, link.bytes_per_s, link.ring_bytes_per_s, link.latency_s)
    assert times(same) == times(link)


@pytest.mark.parametrize("link", links(), ids=lambda link: link.kind)
def test_a_faster_link_is_never_slower(link: IntraNodeLink) -> None:
    by_bandwidth = [times(with_other_numbers(link, link.bytes_per_s * factor)) for factor in FACTORS]
    by_ring = [times(with_other_numbers(link, None, link.ring_bytes_per_s * factor)) for factor in FACTORS]
    by_latency = [times(with_other_numbers(link, latency_s=link.latency_s / factor)) for factor in FACTORS]
    for series in (by_bandwidth, by_ring, by_latency):
        for slower, faster in pairwise(series):
            assert all(fast <= slow * (1 + 1e-9) for slow, fast in zip(slower, faster, strict=True))
    assert all(fast < slow for slow, fast in zip(by_bandwidth[0], by_bandwidth[-1], strict=True))
    assert by_latency[-1] < by_latency[0]


def test_large_payloads_follow_the_bandwidth_and_small_ones_the_latency() -> None:
    link = load_device("a100-sxm-80gb").intra_node
    kind = CollectiveKind.ALL_REDUCE
    half = with_other_numbers(link, link.bytes_per_s / 2)
    assert half.collective_s(kind, 2**33, 8, 8) == pytest.approx(
        2 * link.collective_s(kind, 2**33, 8, 8), rel=0.01
    )
    assert half.collective_s(kind, 2**10, 8, 8) == pytest.approx(
        link.collective_s(kind, 2**10, 8, 8), rel=0.01
    )
    late = with_other_numbers(link, latency_s=link.latency_s + 1e-3)
    for num_bytes in (2**20, 2**30):
        more_s = late.collective_s(kind, num_bytes, 8, 8) - link.collective_s(kind, num_bytes, 8, 8)
        assert more_s == pytest.approx(3e-3, rel=0.01)


def test_what_was_measured_on_a_crowded_bus_stays_when_a_cluster_file_names_it(tmp_path: Path) -> None:
    # Eight devices share it: nominal numbers alone would be twice as quick as what was measured.
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "version: 1\ndevice: rtx4090-24gb\nnodes: 1\ndevices_per_node: 8\n"
        "intra_node: {bandwidth: {value: 28, unit: GB/s}}\n"
    )
    slower, usual = load_cluster(path), make_cluster(load_device("rtx4090-24gb"), 1, 8)
    for num_bytes in SIZES:
        seconds = [c.collective_s(CollectiveKind.ALL_REDUCE, num_bytes, 8) for c in (slower, usual)]
        assert seconds[0] > seconds[1]
