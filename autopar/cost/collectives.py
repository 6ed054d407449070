"""Time of the collectives that a lowered program runs on the tensor axis; they are exposed, for compute
waits for them."""

from __future__ import annotations

from torch import fx

from autopar.hardware.cluster import Cluster
from autopar.lower.block import Transfer


def transfer_s(transfer: Transfer, degree: int, cluster: Cluster, stride: int = 1) -> float:
    """Seconds of one collective over each group of ``degree`` ranks that lie ``stride`` apart."""
    return cluster.collective_s(transfer.kind, transfer.num_bytes, degree, stride)


def node_transfers_s(node: fx.Node, degree: int, cluster: Cluster, stride: int = 1) -> tuple[float, float]:
    """Seconds of the collectives that a node of a lowered graph runs: (forward, backward)."""
    forward_s = backward_s = 0.0
    for transfer in node.meta.get("collectives") or ():
        if transfer.backward:
            backward_s += transfer_s(transfer, degree, cluster, stride)
        else:
            forward_s += transfer_s(transfer, degree, cluster, stride)
    return forward_s, backward_s
