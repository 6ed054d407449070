"""Placements of a tensor on the tensor axis: replicate, partial, shard(dim), also inside fused parts."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the pieces of a tensor are on the ranks of the tensor axis."""


@dataclass(frozen=True, slots=True)
class Replicate(Placement):
    """Every rank holds the whole tensor."""

    def __str__(self) -> str:
        return "replicate"


@dataclass(frozen=True, slots=True)
class Partial(Placement):
    """Every rank holds a summand of the whole shape; the tensor is their sum."""

    def __str__(self) -> str:
        return "partial"


@dataclass(frozen=True, slots=True)
class Shard(Placement):
    """Every rank holds an equal piece along ``dim``.

    Attributes:
        dim: tensor dim, non-negative.
        blocks: g > 1 shards inside each of g equal parts along the dim (fused QKV, gate-up); rank r holds
            the r-th piece of every part.
    """

    dim: int
    blocks: int = 1

    def __str__(self) -> str:
        return f"shard({self.dim})" if self.blocks == 1 else f"shard({self.dim}, {self.blocks})"


REPLICATE = Replicate()
PARTIAL = Partial()

_SHARD = re.compile(r"shard\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)")


def parse_placement(text: str) -> Placement | None:
    """The inverse of ``str``: ``replicate``, ``partial``, ``shard(0, 3)``; None for other words."""
    if text == "replicate":
        return REPLICATE
    if text == "partial":
        return PARTIAL
    match = _SHARD.fullmatch(text.strip())
    return Shard(int(match[1]), int(match[2] or 1)) if match else None


def local_shape(shape: tuple[int, ...], placement: Placement, degree: int) -> tuple[int, ...]:
    """Shape of one rank's piece; the caller has checked that it divides."""
    if not isinstance(placement, Shard):
        return shape
    assert shape[placement.dim] % (degree * placement.blocks) == 0
    return (*shape[: placement.dim], shape[placement.dim] // degree, *shape[placement.dim + 1 :])
