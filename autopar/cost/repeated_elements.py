"""Which elements of shared parameters a rank holds already. No torch here."""

from __future__ import annotations

from autopar.cost.layout import Layout
from autopar.cost.training import Training
from autopar.schedule.actions import stage_rank


def repeated_elements(layout: Layout, training: Training) -> tuple[tuple[int, ...], ...]:
    """Per stage and block, elements that an earlier block of the stage holds already, or one of another stage
    of the rank. Where ZeRO divides parameters, each stage holds its own."""
    repeated = [[0] * len(blocks) for blocks in layout.stages]
    if layout.shared:
        place = [(stage, i) for stage, blocks in enumerate(layout.stages) for i in range(len(blocks))]
    for parameter in layout.shared:
        holders: list[int] = []
        for stage, position in (place[block] for block in parameter.blocks):
            again = stage in holders
            if not again and layout.virtual > 1 and training.level(layout.zero[stage]) == 0:
                rank = _rank(layout, stage)
                again = any(_rank(layout, other) == rank for other in holders)
            if again:
                repeated[stage][position] += parameter.num_elements
            holders.append(stage)
    return tuple(map(tuple, repeated))


def _rank(layout: Layout, stage: int) -> int:
    return stage_rank(layout.schedule, stage, layout.pipeline, layout.virtual)
