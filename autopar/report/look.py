"""Colours with the patterns that say the same to who does not see colours.

The colours are those of Okabe and Ito (Color Universal Design, 2008), which people with any common colour
blindness tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autopar.cost.step_timeline import SpanKind


@dataclass(frozen=True, slots=True)
class Look:
    """How something is drawn.

    Attributes:
        colour: of the surface.
        hatch: pattern on it, as Bokeh names it; empty: none.
        label: what it stands for.
    """

    colour: str
    hatch: str
    label: str


SPAN_LOOKS: Mapping[SpanKind, Look] = {
    SpanKind.FORWARD: Look("#56b4e9", "", "forward"),
    SpanKind.BACKWARD: Look("#009e73", "/", "backward"),
    SpanKind.INPUT_BACKWARD: Look("#009e73", "/", "backward: gradient of the input"),
    SpanKind.WEIGHT_BACKWARD: Look("#e69f00", ".", "backward: gradient of the weights"),
    SpanKind.SYNCHRONISE: Look("#cc79a7", "|", "gradients over the data axis"),
    SpanKind.TIED: Look("#cc79a7", "v", "gradients of shared parameters"),
    SpanKind.UPDATE: Look("#f0e442", "-", "update"),
}
COMMUNICATION = Look("#d55e00", "x", "communication that nothing hides")
IDLE = Look("#eeeeee", "", "idle")

MEMORY_LOOKS: Mapping[str, Look] = {
    "parameters": Look("#0072b2", "", "parameters"),
    "gradients": Look("#56b4e9", "/", "gradients"),
    "optimizer": Look("#009e73", ".", "optimiser state"),
    "activations": Look("#e69f00", "\\", "kept for the backward pass"),
    "transient": Look("#f0e442", "-", "while a block runs"),
    "reserved": Look("#bbbbbb", "x", "framework, buffers, messages"),
}

STAGE_COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#0072b2", "#d55e00", "#bbbbbb")
WORD_HATCHES: Mapping[str, str] = {"replicate": "", "sequence": "/", "batch": "."}
LINES = (("#0072b2", "solid", "circle"), ("#d55e00", "dashed", "square"), ("#009e73", "dotted", "triangle"))
"""Colour, dash and marker of the lines of a plot."""

MARKS: Mapping[str, tuple[str, str, int, str]] = {
    "infeasible": ("#999999", "x", 8, "does not fit (time: a guess)"),
    "looked at": ("#56b4e9", "dot", 14, "looked at, not solved"),
    "other": ("#0072b2", "circle", 8, "another plan"),
    "best": ("#009e73", "star", 20, "the free optimum"),
    "plan": ("#d55e00", "diamond", 18, "this plan"),
}
"""Colour, marker, size and meaning of the points of the candidates."""
