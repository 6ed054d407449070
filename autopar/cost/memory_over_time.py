"""Memory of a rank of each stage while a step runs: what blocks keep for the backward pass comes and goes."""

from __future__ import annotations

from collections.abc import Sequence

from autopar.cost.layout import Layout
from autopar.cost.layout_memory import layout_pieces, rank_memories
from autopar.cost.step_timeline import Span, SpanKind, StepTimeline
from autopar.cost.training import training_of
from autopar.hardware.cluster import Cluster

Curve = tuple[tuple[float, int], ...]
"""Moments with the bytes held from then on."""

_FREES = (SpanKind.BACKWARD, SpanKind.WEIGHT_BACKWARD)


def memory_over_time(layout: Layout, cluster: Cluster, timeline: StepTimeline) -> tuple[Curve, ...]:
    """Bytes of the device per rank of the pipeline axis, from the start of the step to its end.

    What lives inside one block while it runs is counted all the time, so that the highest point of a curve is
    the memory that the plan is predicted to need.
    """
    training = training_of(layout, cluster)
    pieces = layout_pieces(layout, training)
    offloads = "activations" in training.offload
    kept = [piece.handed_on + (0 if offloads else piece.saved) for piece in pieces]
    curves = []
    for lane, memory in zip(timeline.lanes, rank_memories(layout, training), strict=True):
        base = memory.total_bytes - memory.activations_bytes
        curves.append(_curve(lane, kept, base, timeline.step_time_s))
    return tuple(curves)


def _curve(lane: Sequence[Span], kept: Sequence[int], base: int, end_s: float) -> Curve:
    held, points = base, [(0.0, base)]
    for span in lane:
        if span.stage is None or span.micro_batch is None:
            continue
        if span.kind is SpanKind.FORWARD:
            held += kept[span.stage]
            points.append((span.start_s, held))
        elif span.kind in _FREES:
            held -= kept[span.stage]
            points.append((span.end_s, held))
    return (*points, (end_s, held))
