"""A cluster: equal devices on equal nodes, and how long collectives and messages take between them.

Ranks fill nodes in order; the groups of an axis of the mesh are ``size`` ranks ``stride`` apart (in the usual
order tensor has stride 1, data the tensor degree, pipeline tensor x data). All groups of an axis communicate
at the same time, so each device counts on its own share of the node's network cards and no more; the slowest
group, that with the fewest ranks on some node, holds up the others (``hardware.topology``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from autopar.errors import UsageError
from autopar.hardware.device import Device
from autopar.hardware.link import CollectiveKind, IntraNodeLink, NetworkLink
from autopar.hardware.topology import Spread, crosses_nodes, spread


@dataclass(frozen=True, slots=True, eq=False)
class Cluster:
    """Equal nodes of equal devices.

    Attributes:
        intra_node: the device's, unless a cluster file overrides it.
        network: likewise.
        path: of the cluster file that it was read from; empty where a device and counts say it all.
    """

    device: Device
    nodes: int
    devices_per_node: int
    intra_node: IntraNodeLink
    network: NetworkLink
    path: str = ""

    @property
    def num_devices(self) -> int:
        """Devices in all."""
        return self.nodes * self.devices_per_node

    def collective_s(self, kind: CollectiveKind, num_bytes: float, size: int, stride: int = 1) -> float:
        """Seconds of one collective over each group of ``size`` ranks that lie ``stride`` apart.

        Within a node: the measured curve of the link. Over nodes: one ring per local rank, each crossing
        nodes on its own card, so the bus bandwidth is (ranks of the group per node) x (card share), which is
        what nccl-tests reports: 8 x 24 = 192 GB/s on DGX A100, 8 x 48 = 384 on B200 (measured 382), and 24
        for a strided group of one rank a node (NVIDIA GTC24 s62129, slide 12; stas00/ml-engineering,
        network/README.md).
        Latency grows with the logarithm of the nodes (double binary trees, NCCL 2.4).
        """
        if size <= 1 or num_bytes <= 0:
            return 0.0
        return _collective_s(self, kind, float(num_bytes), size, stride)

    def p2p_s(self, num_bytes: float, source: int, target: int) -> float:
        """Seconds of one message from rank ``source`` to rank ``target``, its neighbours sending alike."""
        return self._message_s(num_bytes, source // self.devices_per_node != target // self.devices_per_node)

    def axis_p2p_s(
        self, num_bytes: float, source: int, target: int, size: int, stride: int, busy: float = 1.0
    ) -> float:
        """Seconds of a message between two positions of an axis, in that of its groups where it is slowest.

        Args:
            source: position on the axis.
            target: likewise.
            size: ranks on the axis.
            stride: distance of its ranks.
            busy: as for ``IntraNodeLink.p2p_s``.
        """
        crosses = crosses_nodes(
            self.devices_per_node, self.num_devices, size, stride, min(source, target), max(source, target)
        )
        return self._message_s(num_bytes, crosses, busy)

    def spread(self, size: int, stride: int) -> Spread:
        """How groups of ``size`` ranks ``stride`` apart lie over the nodes."""
        return spread(self.devices_per_node, self.num_devices, size, stride)

    @property
    def host_bytes_per_device(self) -> int:
        """Host memory that each device of a node can count on."""
        return self.device.host.memory_bytes // self.devices_per_node

    def _message_s(self, num_bytes: float, crosses: bool, busy: float = 1.0) -> float:
        if not crosses:
            return self.intra_node.p2p_s(num_bytes, busy)
        return self.network.latency_s + num_bytes / self.network.effective_bytes_per_s


@lru_cache(maxsize=65536)
def _collective_s(cluster: Cluster, kind: CollectiveKind, num_bytes: float, size: int, stride: int) -> float:
    lying = cluster.spread(size, stride)
    if lying.num_nodes == 1:
        return cluster.intra_node.collective_s(kind, num_bytes, size, cluster.devices_per_node)
    latency_s = 2 * cluster.network.latency_s * math.ceil(math.log2(lying.num_nodes))
    if kind is CollectiveKind.ALL_TO_ALL:
        leaving = (size - lying.fewest) / size
        return latency_s + leaving * num_bytes / cluster.network.effective_bytes_per_s
    rate = lying.fewest * cluster.network.effective_bytes_per_s
    if lying.most > 1:
        rate = min(rate, cluster.intra_node.ring_bytes_per_s)
        latency_s += cluster.intra_node.collective_s(kind, 1.0, lying.most, cluster.devices_per_node)
    return latency_s + kind.bus_factor(size) * num_bytes / rate


def make_cluster(device: Device, nodes: int = 1, devices_per_node: int | None = None) -> Cluster:
    """A cluster of ``nodes`` x ``devices_per_node`` (default: the device's usual node).

    Raises:
        UsageError: a count is not positive.
    """
    per_node = device.default_devices_per_node if devices_per_node is None else devices_per_node
    if nodes < 1 or per_node < 1:
        raise UsageError(
            f"a cluster of {nodes} nodes x {per_node} devices is empty; both counts must be positive"
        )
    return Cluster(device, nodes, per_node, device.intra_node, device.network)


def cluster_of(device: Device, num_devices: int, devices_per_node: int | None = None) -> Cluster:
    """The cluster of ``num_devices`` that ``--gpus`` means: whole usual nodes, or part of one node.

    Raises:
        UsageError: the devices do not fill whole nodes.
    """
    per_node = devices_per_node or min(device.default_devices_per_node, max(num_devices, 1))
    if num_devices < 1 or num_devices % per_node:
        raise UsageError(
            f"{num_devices} devices do not fill nodes of {per_node}; "
            f"ask for a multiple of {per_node}, or give "
            f"{'another' if devices_per_node else 'a'} --gpus-per-node"
        )
    return make_cluster(device, num_devices // per_node, per_node)
