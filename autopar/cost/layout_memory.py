"""Memory of every rank of a layout. No torch here."""

from __future__ import annotations

from collections.abc import Iterator

from autopar.cost.layout import Layout
from autopar.cost.prediction import StageMemory
from autopar.cost.repeated_elements import repeated_elements
from autopar.cost.stage_memory import StagePieces, rank_memory, stage_pieces
from autopar.cost.training import Training
from autopar.schedule.actions import rank_in_flight, rank_stages


def rank_memories(layout: Layout, training: Training) -> Iterator[StageMemory]:
    """Peak memory of a rank at each position of the pipeline axis, one after the other."""
    pieces = layout_pieces(layout, training)
    for rank in range(layout.pipeline):
        stages = rank_stages(layout.schedule, rank, layout.pipeline, layout.virtual)
        held = rank_in_flight(
            layout.schedule, len(layout.stages), layout.num_micro_batches, rank, layout.virtual
        )
        yield rank_memory([pieces[s] for s in stages], training, held)


def layout_pieces(layout: Layout, training: Training) -> list[StagePieces]:
    """What every stage needs of memory; those that are alike are worked out once."""
    num_stages = len(layout.stages)
    sent = [layout.boundary_bytes(boundary) for boundary in range(num_stages - 1)] + [0]
    known: dict[tuple[object, ...], StagePieces] = {}
    found = []
    for stage, repeated in enumerate(repeated_elements(layout, training)):
        blocks = layout.stages[stage]
        messages = sent[stage] + (sent[stage - 1] if stage else 0)
        key = (tuple(map(id, blocks)), layout.zero[stage], repeated, messages, sent[stage])
        if key not in known:
            known[key] = stage_pieces(
                blocks, training, layout.zero[stage], repeated, messages, handed_on_bytes=sent[stage]
            )
        found.append(known[key])
    return found
