"""The timeline of a step for Perfetto (ui.perfetto.dev), in Chrome's trace event format (its JSON object
format): a process of the step, with a row for the actions of each rank and one for what runs beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from autopar.cost.memory_over_time import Curve
from autopar.cost.step_timeline import Span, SpanKind, StepTimeline

_BESIDE = (SpanKind.SYNCHRONISE, SpanKind.TIED)


def trace_document(timeline: StepTimeline, memory: Sequence[Curve] = ()) -> dict[str, Any]:
    """Spans of every rank, and its memory as a counter; times in microseconds, as the format wants."""
    events = [_told("process_name", 0, name="predicted step")]
    for rank, lane in enumerate(timeline.lanes):
        for row, name in enumerate((f"rank {rank}", f"rank {rank}, communication beside"), start=2 * rank):
            events += [_told("thread_name", row, name=name), _told("thread_sort_index", row, sort_index=row)]
        events += [_event(rank, span) for span in lane]
    for rank, curve in enumerate(memory):
        events += _counter(rank, curve)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _told(what: str, row: int, **said: str | int) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": 0, "tid": row, "args": said}


def _event(rank: int, span: Span) -> dict[str, Any]:
    of_stage = "" if span.stage is None else f" {span.stage}"
    of_batch = "" if span.micro_batch is None else f".{span.micro_batch}"
    return {
        "name": f"{span.kind.value}{of_stage}{of_batch}",
        "cat": span.kind.value,
        "ph": "X",
        "pid": 0,
        "tid": 2 * rank + (span.kind in _BESIDE),
        "ts": span.start_s * 1e6,
        "dur": (span.end_s - span.start_s) * 1e6,
        "args": {
            "stage": span.stage,
            "micro_batch": span.micro_batch,
            "communication_us": span.comm_s * 1e6,
        },
    }


def _counter(rank: int, curve: Curve) -> Iterator[dict[str, Any]]:
    for moment_s, num_bytes in curve:
        yield {
            "name": f"memory of rank {rank}",
            "ph": "C",
            "pid": 0,
            "ts": moment_s * 1e6,
            "args": {"bytes": num_bytes},
        }
