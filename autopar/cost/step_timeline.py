"""A step as the simulator plays it, with what follows the last backward: what is drawn and traced."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from autopar.cost.layout import Layout
from autopar.cost.step import StepPieces, play, step_pieces
from autopar.hardware.cluster import Cluster
from autopar.schedule.actions import ActionKind
from autopar.schedule.simulator import Event


class SpanKind(StrEnum):
    """What a rank does for a while."""

    FORWARD = "forward"
    BACKWARD = "backward"
    INPUT_BACKWARD = "input gradient"
    WEIGHT_BACKWARD = "weight gradient"
    SYNCHRONISE = "gradients over data"
    TIED = "shared parameters"
    UPDATE = "update"


_KINDS = {
    ActionKind.FORWARD: SpanKind.FORWARD,
    ActionKind.BACKWARD: SpanKind.BACKWARD,
    ActionKind.INPUT_BACKWARD: SpanKind.INPUT_BACKWARD,
    ActionKind.WEIGHT_BACKWARD: SpanKind.WEIGHT_BACKWARD,
}


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a step on one rank.

    Attributes:
        comm_s: how much of it is communication that nothing hides.
        stage: whose; None of all stages of the rank.
        micro_batch: of an action; else None.
    """

    kind: SpanKind
    start_s: float
    end_s: float
    comm_s: float = 0.0
    stage: int | None = None
    micro_batch: int | None = None


@dataclass(frozen=True, slots=True)
class StepTimeline:
    """A step on one rank of every position of the pipeline axis.

    Attributes:
        lanes: what each rank does in order; synchronisations of virtual stages may run beside actions.
    """

    lanes: tuple[tuple[Span, ...], ...]
    step_time_s: float


def step_timeline(layout: Layout, cluster: Cluster) -> StepTimeline:
    """Plays a layout."""
    pieces = step_pieces(layout, cluster)
    played = play(layout, pieces)
    updates_from_s = pieces.updates_from_s
    lanes = []
    for rank, events in enumerate(played.events):
        lane = [_span(event, pieces) for event in events]
        lane += [
            Span(SpanKind.SYNCHRONISE, start_s, end_s, end_s - start_s, stage)
            for stage, start_s, end_s in pieces.synchronisations(rank)
            if end_s > start_s
        ]
        tied_s = pieces.tied_s[rank]
        if tied_s:
            end_s = pieces.synchronised_s(rank)
            lane.append(Span(SpanKind.TIED, end_s - tied_s, end_s, tied_s))
        if pieces.update_s(rank):
            lane.append(Span(SpanKind.UPDATE, updates_from_s, updates_from_s + pieces.update_s(rank)))
        lanes.append(tuple(lane))
    return StepTimeline(tuple(lanes), pieces.step_s)


def _span(event: Event, pieces: StepPieces) -> Span:
    kind, stage, micro_batch = event.action
    seconds = pieces.seconds[stage]
    comm_s = {
        ActionKind.FORWARD: seconds.forward_comm_s,
        ActionKind.BACKWARD: seconds.backward_comm_s,
        ActionKind.INPUT_BACKWARD: seconds.backward_comm_s,
    }.get(kind, 0.0)
    return Span(_KINDS[kind], event.start_s, event.end_s, comm_s * pieces.message_stretch, stage, micro_batch)
