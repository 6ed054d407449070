"""Legends in HTML: they wrap on narrow pages and can be read aloud, as those inside figures cannot."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from html import escape

from autopar.report.look import LINES, MARKS, STAGE_COLOURS, WORD_HATCHES, Look
from autopar.report.memory_figures import line_of
from autopar.report.picture import BlockCell, Sensitivity

_HATCH_PATHS = {
    "/": "M0 16L16 0M-4 4L4 -4M12 20L20 12",
    "\\": "M0 0L16 16M-4 12L4 20M12 -4L20 4",
    "x": "M0 16L16 0M0 0L16 16",
    "-": "M0 4H16M0 12H16",
    "|": "M4 0V16M12 0V16",
    ".": "M4 4h.1M12 4h.1M8 9h.1M4 13h.1M12 13h.1",
    "v": "M0 4L4 10L8 4L12 10L16 4",
}
_MARKERS = {
    "dot": '<circle cx="8" cy="8" r="2.5"/>',
    "circle": '<circle cx="8" cy="8" r="5"/>',
    "square": '<path d="M3 3H13V13H3Z"/>',
    "triangle": '<path d="M8 2L14 13H2Z"/>',
    "diamond": '<path d="M8 0L14 8L8 16L2 8Z"/>',
    "star": '<path d="M8 0L10 6H16L11 10L13 16L8 12L3 16L5 10L0 6H6Z"/>',
    "x": '<path d="M3 3L13 13M3 13L13 3"/>',
}


def looks_legend(looks: Iterable[Look]) -> str:
    """What colours and patterns stand for."""
    return _legend((_swatch(look.colour, look.hatch), look.label) for look in looks)


def marks_legend(marks: Collection[str]) -> str:
    """What the points of the candidates stand for."""
    return _legend(
        (_svg(f'<g fill="{colour}" stroke="{colour}">{_MARKERS[marker]}</g>'), meaning)
        for mark, (colour, marker, _, meaning) in MARKS.items()
        if mark in marks
    )


def curves_legend(ranks: Sequence[int]) -> str:
    """Which line is which rank."""
    return _legend((_line(*line_of(row)), f"rank {rank}") for row, rank in enumerate(ranks))


def sensitivity_legend(found: Sequence[Sensitivity]) -> str:
    """Which line is which."""
    return _legend(
        (_line(colour, dash) + _svg(f'<g fill="{colour}">{_MARKERS[marker]}</g>'), one.name)
        for one, (colour, dash, marker) in zip(found, LINES, strict=False)
    )


def chain_legend(blocks: Sequence[BlockCell]) -> str:
    """The first stages, and what patterns say of the value that flows out."""
    stages = sorted({block.stage for block in blocks})[: len(STAGE_COLOURS)]
    shown = [(_swatch(STAGE_COLOURS[stage % len(STAGE_COLOURS)], ""), f"stage {stage}") for stage in stages]
    words = sorted({block.output_word for block in blocks})
    shown += [(_swatch("#ffffff", WORD_HATCHES.get(word, "x")), f"flows out: {word}") for word in words]
    return _legend(shown)


def _legend(entries: Iterable[tuple[str, str]]) -> str:
    listed = "".join(f"<li>{swatch}{escape(text)}</li>" for swatch, text in entries)
    return f'<ul class="legend">{listed}</ul>'


def _swatch(colour: str, hatch: str) -> str:
    square = f'<rect width="16" height="16" fill="{colour}" stroke="#999"/>'
    if not hatch:
        return _svg(square)
    stroke = 'stroke="#000" stroke-opacity=".5" stroke-width="1.5" fill="none" stroke-linecap="round"'
    return _svg(f'{square}<path d="{_HATCH_PATHS[hatch]}" {stroke}/>')


def _line(colour: str, dash: str) -> str:
    dashes = {"solid": "", "dashed": ' stroke-dasharray="6 4"', "dotted": ' stroke-dasharray="2 3"'}[dash]
    path = f'<path d="M0 8H28" stroke="{colour}" stroke-width="3"{dashes}/>'
    return f'<svg aria-hidden="true" width="28" height="16">{path}</svg>'


def _svg(inside: str) -> str:
    return f'<svg aria-hidden="true" width="16" height="16">{inside}</svg>'
