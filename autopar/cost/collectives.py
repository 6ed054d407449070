"""Time of the collectives that a lowered program runs on the tensor axis; they are exposed, for compute
waits for them."""

from __future__ import annotations

from autopar.hardware.cluster import Cluster
from autopar.lower.block import Transfer


def transfer_s(transfer: Transfer, degree: int, cluster: Cluster, stride: int = 1) -> float:
    """Seconds of one collective over each group of ``degree`` ranks that lie ``stride`` apart."""
    return cluster.collective_s(transfer.kind, transfer.num_bytes, degree, stride)
