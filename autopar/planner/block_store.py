"""What is worked out of a model's blocks, kept by everything that it depends on: for all searches of one
captured model on one cluster, whatever their constraints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autopar.cost.blocks import Readings
from autopar.cost.choice import BlockChoice
from autopar.hardware.topology import Spread
from autopar.planner.realise import Realiser
from autopar.planner.table_solver import TableSolver
from autopar.sharding.placement import Placement

SettingKey = tuple[int, int, Spread]
"""Tensor degree, micro-batch, and how the ranks of the tensor axis lie over the nodes."""

BlockKey = tuple[SettingKey, int, tuple[tuple[str, str], ...]]
"""A setting, the index of a block, and the placements that constraints ask for in it."""


@dataclass(slots=True)
class BlockStore:
    """Tables, what their solutions become as plans say them, and what these cost.

    Attributes:
        choices: by block, and by everything else that constraints fix in it.
        sample_s: least seconds of a sample, by the micro-batch that was looked at and the global batch.
    """

    readings: Readings
    solvers: dict[BlockKey, TableSolver] = field(default_factory=dict)
    realisers: dict[BlockKey, Realiser] = field(default_factory=dict)
    choices: dict[object, tuple[BlockChoice, ...]] = field(default_factory=dict)
    sample_s: dict[tuple[int, int | None], float] = field(default_factory=dict)


def placements_key(placements: Mapping[str, Placement]) -> tuple[tuple[str, str], ...]:
    """Placements of parameters, whatever their order."""
    return tuple(sorted((name, str(placement)) for name, placement in placements.items()))
