"""Many small tensors in one collective."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from autopar.units import MiB

_BUCKET_BYTES = 32 * MiB


def all_reduce_in_buckets(tensors: Iterable[Tensor], group: dist.ProcessGroup, factor: float = 1.0) -> None:
    """Sums tensors over a group and scales them, in place, many small ones in one collective."""
    buckets: list[list[Tensor]] = []
    filled_bytes = 0
    for tensor in tensors:
        num_bytes = tensor.numel() * tensor.element_size()
        if not buckets or filled_bytes + num_bytes > _BUCKET_BYTES or buckets[-1][0].dtype != tensor.dtype:
            buckets.append([])
            filled_bytes = 0
        buckets[-1].append(tensor)
        filled_bytes += num_bytes
    for bucket in buckets:
        flat = bucket[0].reshape(-1) if len(bucket) == 1 else torch.cat([x.reshape(-1) for x in bucket])
        dist.all_reduce(flat, group=group)
        flat *= factor
        offset = 0
        for tensor in bucket:
            piece = flat.narrow(0, offset, tensor.numel())
            offset += tensor.numel()
            if piece.data_ptr() != tensor.data_ptr():
                tensor.copy_(piece.view_as(tensor))
