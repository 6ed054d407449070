"""A step as a few lines of text: one lane a rank, one character a moment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from autopar.cost.step_timeline import Span, SpanKind, StepTimeline
from autopar.report.some_ranks import some_ranks
from autopar.units import format_seconds

_MOST_LANES = 8
_IDLE = "·"
_SIGNS = {
    SpanKind.FORWARD: ("F", "cyan"),
    SpanKind.BACKWARD: ("B", "green"),
    SpanKind.INPUT_BACKWARD: ("B", "green"),
    SpanKind.WEIGHT_BACKWARD: ("W", "yellow"),
    SpanKind.SYNCHRONISE: ("g", "magenta"),
    SpanKind.TIED: ("g", "magenta"),
    SpanKind.UPDATE: ("u", "blue"),
}
_MEANINGS = {"F": "forward", "B": "backward", "W": "weight gradient", "g": "gradients", "u": "update"}


def lanes(timeline: StepTimeline, width: int) -> list[Text]:
    """The lanes and what their letters mean; where ranks are many, some of them.

    Args:
        width: of the lines, in characters.
    """
    ranks = some_ranks(len(timeline.lanes), _MOST_LANES)
    names = [f"rank {rank}" for rank in ranks]
    room = max(20, width - max(map(len, names)) - 1)
    lines, used = [], set()
    for name, rank in zip(names, ranks, strict=True):
        line = Text(f"{name:<{max(map(len, names))}} ")
        for kind in _moments(timeline.lanes[rank], timeline.step_time_s, room):
            sign, style = _SIGNS[kind] if kind is not None else (_IDLE, "dim")
            line.append(sign, style)
            used.add(sign)
        lines.append(line)
    meanings = [f"{sign} {text}" for sign, text in _MEANINGS.items() if sign in used]
    if _IDLE in used:
        meanings.append(f"{_IDLE} idle")
    hidden = "" if len(ranks) == len(timeline.lanes) else f"; {len(ranks)} of {len(timeline.lanes)} ranks"
    lines.append(Text(f"0 to {format_seconds(timeline.step_time_s)}: {', '.join(meanings)}{hidden}", "dim"))
    return lines


def _moments(lane: Sequence[Span], step_time_s: float, room: int) -> Iterator[SpanKind | None]:
    """What a rank does in the middle of each of so many equal pieces of the step; actions before what runs
    beside them."""
    actions = [span for span in lane if span.micro_batch is not None]
    others = [span for span in lane if span.micro_batch is None]
    position = 0
    for cell in range(room):
        moment_s = (cell + 0.5) / room * step_time_s
        while position < len(actions) and actions[position].end_s <= moment_s:
            position += 1
        if position < len(actions) and actions[position].start_s <= moment_s:
            yield actions[position].kind
            continue
        yield next((span.kind for span in others if span.start_s <= moment_s < span.end_s), None)
