"""Whole tensors to local ones and back, as a placement says."""

from __future__ import annotations

import torch
from torch import Tensor

from autopar.lower.collectives import from_pieces, own_piece
from autopar.sharding.placement import Partial, Placement, Shard


def scatter(whole: Tensor, placement: Placement, size: int) -> list[Tensor]:
    """What each rank holds; summands of a partial tensor are unequal on purpose."""
    whole = whole.detach()
    if isinstance(placement, Shard):
        return [own_piece(whole, placement.dim, placement.blocks, rank, size) for rank in range(size)]
    if isinstance(placement, Partial):
        shares = [float(rank + 1) for rank in range(size - 1)]
        return [whole * share for share in (*shares, 1.0 - sum(shares))]
    return [whole.clone() for _ in range(size)]


def combine(local: list[Tensor], placement: Placement) -> Tensor:
    """The whole tensor; replicated copies must be equal."""
    if isinstance(placement, Shard):
        return from_pieces(torch.stack(local), placement.dim, placement.blocks)
    if isinstance(placement, Partial):
        return torch.stack(local).sum(0)
    for other in local[1:]:
        torch.testing.assert_close(other, local[0], rtol=1e-12, atol=1e-12, equal_nan=True)
    return local[0]
