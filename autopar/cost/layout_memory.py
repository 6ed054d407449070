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
    """Peak memory of a rank at each position of the pipeline axis, one after the other; of the ranks that are
    not asked for, nothing is worked out."""
    pieces = _LayoutPieces(layout, training)
    for rank in range(layout.pipeline):
        stages = rank_stages(layout.schedule, rank, layout.pipeline, layout.virtual)
        held = rank_in_flight(
            layout.schedule, len(layout.stages), layout.num_micro_batches, rank, layout.virtual
        )
        yield rank_memory([pieces.of(s) for s in stages], training, held)


def layout_pieces(layout: Layout, training: Training) -> list[StagePieces]:
    """What every stage needs of memory."""
    pieces = _LayoutPieces(layout, training)
    return [pieces.of(stage) for stage in range(len(layout.stages))]


class _LayoutPieces:
    """What the stages of a layout need; those that are alike are worked out once."""

    def __init__(self, layout: Layout, training: Training) -> None:
        self._layout, self._training = layout, training
        self._sent = [layout.boundary_bytes(boundary) for boundary in range(len(layout.stages) - 1)] + [0]
        self._repeated = repeated_elements(layout, training)
        self._known: dict[tuple[object, ...], StagePieces] = {}

    def of(self, stage: int) -> StagePieces:
        """One stage."""
        blocks, repeated, sent = self._layout.stages[stage], self._repeated[stage], self._sent[stage]
        messages = sent + (self._sent[stage - 1] if stage else 0)
        key = (tuple(map(id, blocks)), self._layout.zero[stage], repeated, messages, sent)
        if key not in self._known:
            self._known[key] = stage_pieces(
                blocks, self._training, self._layout.zero[stage], repeated, messages, handed_on_bytes=sent
            )
        return self._known[key]
