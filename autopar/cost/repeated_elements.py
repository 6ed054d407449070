"""Which elements of shared parameters a rank holds already. No torch here."""

from __future__ import annotations

from autopar.cost.layout import Layout
from autopar.cost.training import Training
from autopar.schedule.actions import stage_rank


def repeated_elements(layout: Layout, stage: int, training: Training) -> tuple[int, ...]:
    """Per block, elements that an earlier block of the stage holds already, or one of another stage of the
    rank. Where ZeRO divides parameters, each stage holds its own."""
    repeated = list(layout.repeated_elements(stage))
    if layout.virtual == 1 or training.level(layout.zero[stage]) > 0:
        return tuple(repeated)
    rank = stage_rank(layout.schedule, stage, layout.pipeline, layout.virtual)
    first = layout.first_block(stage)
    for parameter in layout.shared:
        ranks = [
            stage_rank(layout.schedule, s, layout.pipeline, layout.virtual)
            for s in layout.holders(parameter)
            if s < stage
        ]
        here = [b - first for b in parameter.blocks if 0 <= b - first < len(repeated)]
        if here and rank in ranks:
            repeated[here[0]] += parameter.num_elements
    return tuple(repeated)
