"""The numbers of every figure as a table: for who does not see the figures, and for who wants the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import groupby

from autopar.cost.breakdown import TERMS, Breakdown
from autopar.cost.memory_over_time import Curve
from autopar.cost.prediction import Prediction
from autopar.cost.step_timeline import Span, SpanKind, StepTimeline
from autopar.report.explained import TERM_NAMES
from autopar.report.look import MARKS
from autopar.report.picture import BlockCell, CandidatePoint, Sensitivity
from autopar.report.predicted import MEMORY_PURPOSES, format_percent, memory_of
from autopar.units import format_bytes, format_seconds

_MOST_ROWS = 60
_SHORT = 12
_ACTIONS = {
    "forward": (SpanKind.FORWARD,),
    "backward": (SpanKind.BACKWARD, SpanKind.INPUT_BACKWARD),
    "weight gradient": (SpanKind.WEIGHT_BACKWARD,),
    "update": (SpanKind.UPDATE,),
}
_SYNCHRONISING = (SpanKind.SYNCHRONISE, SpanKind.TIED)


def html_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; what is beyond some rows is counted."""
    listed = list(rows)
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in headers)
    body = "".join(_row(row) for row in listed[:_MOST_ROWS])
    if len(listed) > _MOST_ROWS:
        body += f'<tr><td colspan="{len(headers)}">and {len(listed) - _MOST_ROWS} more</td></tr>'
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(cells: Sequence[str]) -> str:
    first, *rest = cells
    return f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{_cell(c)}</td>" for c in rest)}</tr>'


def _cell(text: str) -> str:
    """A number and its unit stay on one line."""
    is_number = text[:1].isdigit() and len(text) <= _SHORT
    return escape(text.replace(" ", "\u00a0") if is_number else text)


def timeline_table(timeline: StepTimeline) -> str:
    """What each rank does how long, communication apart, and how long it is idle."""
    rows = []
    for rank, lane in enumerate(timeline.lanes):
        exposed_s = sum(span.comm_s for span in lane if span.kind not in _SYNCHRONISING)
        parts = {
            name: sum(_alone_s(span) for span in lane if span.kind in kinds)
            for name, kinds in _ACTIONS.items()
        }
        rows.append(
            [
                str(rank),
                *(format_seconds(seconds) if seconds else "0" for seconds in parts.values()),
                format_seconds(exposed_s + _synchronising_s(lane)),
                format_seconds(idle_s(lane, timeline.step_time_s)),
            ]
        )
    return html_table(["rank", *_ACTIONS, "communication", "idle"], rows)


def idle_s(lane: Sequence[Span], step_time_s: float) -> float:
    """How long a rank does nothing at all."""
    busy_s = until_s = 0.0
    for span in sorted(lane, key=lambda span: span.start_s):
        busy_s += max(0.0, span.end_s - max(span.start_s, until_s))
        until_s = max(until_s, span.end_s)
    return max(0.0, step_time_s - busy_s)


def _alone_s(span: Span) -> float:
    return span.end_s - span.start_s - span.comm_s


def _synchronising_s(lane: Iterable[Span]) -> float:
    """Of synchronising, what no action of the rank runs beside."""
    actions = [span for span in lane if span.micro_batch is not None]
    last_s = max((span.end_s for span in actions), default=0.0)
    return sum(
        max(0.0, span.end_s - max(span.start_s, last_s)) for span in lane if span.kind in _SYNCHRONISING
    )


def breakdown_table(breakdown: Breakdown) -> str:
    """The terms of the slowest rank."""
    terms = breakdown.terms
    rows = [
        [
            TERM_NAMES[term],
            format_seconds(terms.seconds(term)),
            format_percent(terms.seconds(term) / breakdown.step_time_s),
        ]
        for term in TERMS
        if terms.seconds(term)
    ]
    rows.append(["step", format_seconds(breakdown.step_time_s), "100.0%"])
    return html_table([f"rank {breakdown.slowest}, the slowest", "time", "share"], rows)


def memory_table(prediction: Prediction) -> str:
    """Bytes by purpose of each rank's device."""
    rows = [
        [
            str(rank),
            *(format_bytes(memory_of(stage.memory, purpose)) for purpose in MEMORY_PURPOSES),
            format_bytes(stage.memory.total_bytes),
            format_percent(stage.memory.total_bytes / prediction.memory_limit_bytes),
        ]
        for rank, stage in enumerate(prediction.stages)
    ]
    return html_table(["rank", *MEMORY_PURPOSES, "in all", "of the limit"], rows)


def curves_table(curves: Sequence[Curve]) -> str:
    """When each rank holds most, and how much."""
    rows = []
    for rank, curve in enumerate(curves):
        moment_s, most = max(curve, key=lambda point: (point[1], -point[0]))
        rows.append([str(rank), format_bytes(curve[0][1]), format_bytes(most), format_seconds(moment_s)])
    return html_table(["rank", "at the start", "at most", "first at"], rows)


def candidates_table(points: Iterable[CandidatePoint]) -> str:
    """The quickest first; what does not fit last."""
    ordered = sorted(points, key=lambda p: (p.mark == "infeasible", p.step_s, p.label))
    rows = [
        [p.label, format_seconds(p.step_s), format_bytes(p.peak_bytes), MARKS[p.mark][3]] for p in ordered
    ]
    return html_table(["setting", "step", "memory", ""], rows)


def chain_table(blocks: Sequence[BlockCell]) -> str:
    """Blocks that are run alike in one row."""
    return html_table(
        ["blocks", "stage", "flows out", "parameters", "recompute", "forward", "backward", "kept"],
        _alike(blocks),
    )


def _alike(blocks: Sequence[BlockCell]) -> Iterator[list[str]]:
    def what(block: BlockCell) -> list[str]:
        return [
            str(block.stage),
            block.output_word,
            block.placements or "replicate",
            block.recompute,
            format_seconds(block.forward_s),
            format_seconds(block.backward_s),
            format_bytes(block.saved_bytes),
        ]

    for said, group in groupby(blocks, key=what):
        names = [block.name for block in group]
        yield [names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}", *said]


def sensitivity_table(found: Iterable[Sensitivity]) -> str:
    """One row a line."""
    rows = [
        [one.name, ", ".join(f"x {factor:g}: {share - 1:+.1%}" for factor, share in one.points), one.remark]
        for one in found
    ]
    return html_table(["what", "time of a sample beside the plan's", "how"], rows)
