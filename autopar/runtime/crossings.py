"""What crosses the boundaries between the stages of a pipeline, as one rank holds it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from autopar.lower.resolve import ResolvedPlan
from autopar.runtime.block_reads import reads
from autopar.sharding.placement import local_shape


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


def boundary_crossings(resolved: ResolvedPlan) -> tuple[tuple[Crossing, ...], ...]:
    """For every boundary, the values that travel from stage i to stage i + 1, in the order of the graph.

    A value that skips stages crosses every boundary on its way.
    """
    return tuple(_crossings(resolved, boundary) for boundary in range(resolved.num_stages - 1))


def _crossings(resolved: ResolvedPlan, boundary: int) -> tuple[Crossing, ...]:
    made: dict[str, Crossing] = {}
    needed: set[str] = set()
    for decision in resolved.blocks:
        if decision.stage > boundary:
            needed.update(reads(decision.block))
            continue
        for name, placement in zip(decision.block.outputs, decision.sharding.outputs, strict=True):
            if name in resolved.graph.values:
                spec = resolved.graph.values[name]
                shape = local_shape(spec.shape, placement, decision.sharding.degree)
                made[name] = Crossing(name, shape, spec.dtype)
    return tuple(crossing for name, crossing in made.items() if name in needed)
