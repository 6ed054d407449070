"""What crosses the boundaries between the stages of a pipeline, as one rank holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from autopar.capture.model_graph import Block, TensorSpec
from autopar.runtime.block_reads import reads
from autopar.sharding.placement import local_shape
from autopar.sharding.propagation import BlockSharding


@dataclass(frozen=True, slots=True)
class Crossing:
    """A value that crosses the boundary between two stages, as one rank holds it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def has_gradient(self) -> bool:
        """Whether a gradient travels back."""
        return self.dtype.is_floating_point


@dataclass(frozen=True, slots=True)
class PlacedBlock:
    """A block as it runs: its stage, and the placement of what it returns."""

    block: Block
    sharding: BlockSharding
    stage: int


def boundary_crossings(
    chain: Sequence[PlacedBlock], values: Mapping[str, TensorSpec], num_stages: int
) -> tuple[tuple[Crossing, ...], ...]:
    """For every boundary, the values that travel from stage i to stage i + 1, in the order of the graph.

    A value that skips stages crosses every boundary on its way.

    Args:
        values: everything that crosses a boundary of blocks.
    """
    return tuple(_crossings(chain, values, boundary) for boundary in range(num_stages - 1))


def _crossings(
    chain: Sequence[PlacedBlock], values: Mapping[str, TensorSpec], boundary: int
) -> tuple[Crossing, ...]:
    made: dict[str, Crossing] = {}
    needed: set[str] = set()
    for placed in chain:
        if placed.stage > boundary:
            needed.update(reads(placed.block))
            continue
        for name, placement in zip(placed.block.outputs, placed.sharding.outputs, strict=True):
            if name in values:
                shape = local_shape(values[name].shape, placement, placed.sharding.degree)
                made[name] = Crossing(name, shape, values[name].dtype)
    return tuple(crossing for name, crossing in made.items() if name in needed)
