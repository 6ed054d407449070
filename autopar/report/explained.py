"""Tables of ``explain``: where a step goes, what lines cost, what one module does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from rich.table import Table

from autopar.cost.breakdown import TERMS, Breakdown, Hidden, StepTerms
from autopar.report.predicted import format_percent
from autopar.report.some_ranks import some_ranks
from autopar.report.text import plain_table
from autopar.units import format_bytes, format_seconds

_MOST_RANKS = 5
_WIDTH_OF_THE_SLOWEST, _WIDTH_OF_A_RANK = 68, 10

TERM_NAMES = {
    "forward": "compute: forward",
    "backward": "compute: backward",
    "recompute": "compute: recompute",
    "host": "host: dispatch, fixed times",
    "tensor": "tensor axis: collectives",
    "data": "data axis: gathers, scatters",
    "sync": "data axis: gradients, at the end",
    "message": "pipeline axis: messages",
    "tied": "pipeline axis: shared parameters",
    "offload": "offload: moving to the host",
    "bubble": "bubble: waiting for stages",
    "update": "update",
    "waiting": "waiting for other ranks",
}
"""What people call the terms of a step."""

_HIDDEN = {"data": "data_s", "message": "message_s"}


class Line(Protocol):
    """A decision and what it costs."""

    @property
    def key(self) -> str:
        """As ``--set`` writes it."""

    @property
    def here(self) -> str:
        """What the plan says."""

    @property
    def free(self) -> str:
        """What the free optimum says."""

    @property
    def step_time_s(self) -> float | None:
        """Of the best plan in which it is fixed."""

    @property
    def extra_s(self) -> float | None:
        """By how much that is longer than the free optimum."""

    @property
    def remark(self) -> str:
        """Why there is no number, or what is odd about it."""


class Contender(Protocol):
    """A plan that was not chosen."""

    @property
    def step_time_s(self) -> float | None:
        """Predicted; None where none fits."""

    @property
    def terms(self) -> StepTerms | None:
        """Likewise."""


def terms_table(breakdown: Breakdown, width: int = 120) -> Table:
    """One row a term: of the slowest rank with its share, what is hidden beside compute, of other ranks.

    Args:
        width: in characters, which says how many other ranks there is room for.
    """
    slowest = breakdown.slowest
    room = max(1, min(_MOST_RANKS, (width - _WIDTH_OF_THE_SLOWEST) // _WIDTH_OF_A_RANK))
    others = [rank for rank in some_ranks(len(breakdown.ranks), room + 1) if rank != slowest][:room]
    table = plain_table(
        "where the step goes",
        f">rank {slowest}" + (" (slowest)" if others else ""),
        ">share",
        ">hidden",
        *(f">rank {rank}" for rank in others),
    )
    table.columns[0].no_wrap = True
    hidden = breakdown.hidden[slowest]
    for term in TERMS:
        if not any(rank.seconds(term) for rank in breakdown.ranks) and not _hidden_s(hidden, term):
            continue
        own_s = breakdown.terms.seconds(term)
        table.add_row(
            TERM_NAMES[term],
            _seconds(own_s),
            format_percent(own_s / breakdown.step_time_s),
            _seconds(_hidden_s(hidden, term)) if _hidden_s(hidden, term) else "",
            *(_seconds(breakdown.ranks[rank].seconds(term)) for rank in others),
        )
    table.add_section()
    total = format_seconds(breakdown.step_time_s)
    table.add_row("step", total, "100.0%", "", *(total for _ in others))
    return table


def _hidden_s(hidden: Hidden, term: str) -> float:
    found: float = getattr(hidden, _HIDDEN[term]) if term in _HIDDEN else 0.0
    return found


def _seconds(seconds: float) -> str:
    return format_seconds(seconds) if seconds else "0"


def lines_table(lines: Iterable[Line]) -> Table:
    """One row a decision that differs from the free optimum, with what fixing it alone costs."""
    table = plain_table("line", "here", "free optimum", ">fixed alone", ">costs", "")
    for line in lines:
        if line.step_time_s is None or line.extra_s is None:
            table.add_row(line.key, line.here, line.free, "", "", line.remark)
        else:
            costs = format_seconds(line.step_time_s), signed_seconds(line.extra_s)
            table.add_row(line.key, line.here, line.free, *costs, line.remark)
    return table


def signed_seconds(seconds: float) -> str:
    """``+1.2 ms``, ``-3.0 ms`` or ``nothing``."""
    if abs(seconds) < 1e-9:
        return "nothing"
    return f"{'+' if seconds > 0 else '-'}{format_seconds(abs(seconds))}"


def signed_bytes(num_bytes: int) -> str:
    """``+1.00 GiB``, ``-512.00 MiB`` or ``nothing``."""
    if not num_bytes:
        return "nothing"
    return f"{'+' if num_bytes > 0 else '-'}{format_bytes(abs(num_bytes))}"


def what_loses(other: Contender, best: StepTerms) -> str:
    """The terms in which a contender loses most and gains most, e.g. ``bubble +5.1 ms; update -1.0 ms``."""
    if other.terms is None:
        return ""
    changes = {term: other.terms.seconds(term) - best.seconds(term) for term in TERMS}
    most, least = max(changes, key=lambda t: changes[t]), min(changes, key=lambda t: changes[t])
    said = []
    if changes[most] > 0:
        said.append(f"{TERM_NAMES[most]} {signed_seconds(changes[most])}")
    if changes[least] < -0.01 * abs(changes[most]):
        said.append(f"{TERM_NAMES[least]} {signed_seconds(changes[least])}")
    return "; ".join(said)
