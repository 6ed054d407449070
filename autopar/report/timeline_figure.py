"""The timeline of a step: a lane for each rank of the pipeline axis, drawn from the simulator's numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, Range1d
from bokeh.plotting import figure

from autopar.cost.step_timeline import Span, SpanKind, StepTimeline
from autopar.report.figure import add_hover, new_figure, seconds_ticks, surface
from autopar.report.look import COMMUNICATION, IDLE, SPAN_LOOKS, Look
from autopar.report.some_ranks import some_ranks
from autopar.units import format_seconds

MOST_SPANS = 20_000
_MOST_OUTLINED = 100
"""Spans of a lane; beyond, edges would hide what lies between them."""
_STRIP = (SpanKind.SYNCHRONISE, SpanKind.TIED)
_LANE = (-0.4, 0.4)
_BELOW = (0.25, 0.4)
_TOOLTIPS = [("what", "@what"), ("stage, micro-batch", "@whose"), ("from, for", "@when"), ("rank", "@rank")]


def shown_lanes(timeline: StepTimeline) -> tuple[int, ...]:
    """The ranks that are drawn: all of them, or as many as a browser draws quickly, evenly spread."""
    num_lanes = len(timeline.lanes)
    return some_ranks(num_lanes, MOST_SPANS * num_lanes // max(1, sum(map(len, timeline.lanes))))


def timeline_figure(timeline: StepTimeline) -> figure:
    """Draws a timeline."""
    ranks = shown_lanes(timeline)
    plot = new_figure(
        max(180, min(900, 120 + 36 * len(ranks))),
        x_range=Range1d(0, timeline.step_time_s, bounds=(0, timeline.step_time_s)),
        y_range=Range1d(len(ranks) - 0.5, -0.5, bounds=(-0.5, len(ranks) - 0.5)),
        x_axis_label="time",
        y_axis_label="rank",
    )
    plot.xaxis.formatter = seconds_ticks()
    plot.yaxis.ticker = list(range(len(ranks)))
    plot.yaxis.major_label_overrides = {row: str(rank) for row, rank in enumerate(ranks)}
    plot.ygrid.grid_line_color = None
    background = ColumnDataSource({"y": [float(row) for row in range(len(ranks))]})
    plot.hbar(y="y", left=0, right=timeline.step_time_s, height=0.8, color=IDLE.colour, source=background)
    edge = 0.5 if max(map(len, timeline.lanes)) <= _MOST_OUTLINED else 0.0
    drawn = []
    for kind, look in SPAN_LOOKS.items():
        spans = [
            (row, rank, span)
            for row, rank in enumerate(ranks)
            for span in timeline.lanes[rank]
            if span.kind is kind
        ]
        if spans:
            drawn.append(_quads(plot, spans_source(spans), look, str(kind.value), edge))
    exposed = [
        (row, rank, _communication(span))
        for row, rank in enumerate(ranks)
        for span in timeline.lanes[rank]
        if span.comm_s > 0 and span.kind not in _STRIP
    ]
    if exposed:
        _quads(plot, spans_source(exposed), COMMUNICATION, "communication", edge)
    add_hover(plot, drawn, _TOOLTIPS)
    return plot


def spans_source(spans: Sequence[tuple[int, int, Span]]) -> ColumnDataSource:
    """The columns of some spans: (row, rank, span)."""
    edges = [_BELOW if span.kind in _STRIP else _LANE for _, _, span in spans]
    return ColumnDataSource(
        {
            "left": np.array([span.start_s for _, _, span in spans]),
            "right": np.array([span.end_s for _, _, span in spans]),
            "top": np.array([row + low for (row, _, _), (low, _) in zip(spans, edges, strict=True)]),
            "bottom": np.array([row + high for (row, _, _), (_, high) in zip(spans, edges, strict=True)]),
            "rank": np.array([rank for _, rank, _ in spans], dtype=np.int32),
            "what": [_what(span) for _, _, span in spans],
            "whose": [_whose(span) for _, _, span in spans],
            "when": [
                f"{format_seconds(span.start_s)}, {format_seconds(span.end_s - span.start_s)}"
                for _, _, span in spans
            ],
        }
    )


def looks_shown(timeline: StepTimeline) -> Iterator[Look]:
    """What the legend of a timeline has to say."""
    kinds = {span.kind for lane in timeline.lanes for span in lane}
    yield from (look for kind, look in SPAN_LOOKS.items() if kind in kinds)
    if any(span.comm_s > 0 for lane in timeline.lanes for span in lane if span.kind not in _STRIP):
        yield COMMUNICATION
    yield IDLE


def _communication(span: Span) -> Span:
    """The part of an action that is communication, drawn at its end."""
    return Span(span.kind, span.end_s - span.comm_s, span.end_s, span.comm_s, span.stage, span.micro_batch)


def _what(span: Span) -> str:
    if span.comm_s and span.kind not in _STRIP:
        return f"{span.kind.value}, {format_seconds(span.comm_s)} of it communication"
    return str(span.kind.value)


def _whose(span: Span) -> str:
    parts = [span.stage, span.micro_batch]
    return ", ".join("-" if part is None else str(part) for part in parts)


def _quads(plot: figure, source: ColumnDataSource, look: Look, name: str, edge: float) -> Any:
    return plot.quad(
        left="left",
        right="right",
        top="top",
        bottom="bottom",
        source=source,
        name=name,
        line_width=edge,
        **surface(look),
    )
