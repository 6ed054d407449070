import pytest

from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import make_cluster
from autopar.hardware.faster_links import with_faster_links
from autopar.hardware.link import CollectiveKind


@pytest.mark.parametrize("device", ["a100-sxm-80gb", "rtx4090-24gb", "cpu"])
def test_twice_the_bandwidth_halves_what_is_not_latency(device: str) -> None:
    cluster = make_cluster(load_device(device), 2)
    faster = with_faster_links(cluster, 2.0)
    for size, stride in ((2, 1), (cluster.num_devices, 1)):
        for kind in (CollectiveKind.ALL_REDUCE, CollectiveKind.ALL_GATHER):
            slow_s = cluster.collective_s(kind, 1e10, size, stride)
            assert faster.collective_s(kind, 1e10, size, stride) == pytest.approx(slow_s / 2, rel=0.02)
    assert faster.p2p_s(1e10, 0, cluster.devices_per_node) == pytest.approx(
        cluster.p2p_s(1e10, 0, cluster.devices_per_node) / 2, rel=0.02
    )
    assert with_faster_links(cluster, 1.0).collective_s(CollectiveKind.ALL_REDUCE, 1e6, 2) == pytest.approx(
        cluster.collective_s(CollectiveKind.ALL_REDUCE, 1e6, 2)
    )
