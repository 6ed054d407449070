"""Tables of ``explain --node``: one module's parameters, operators and collectives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from rich.table import Table

from autopar.report.text import plain_table
from autopar.units import format_bytes, format_seconds


class ParameterRow(Protocol):
    """A parameter of a module."""

    @property
    def name(self) -> str:
        """Canonical."""

    @property
    def placement(self) -> str:
        """On the tensor axis."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Whole."""

    @property
    def num_elements(self) -> int:
        """Of one rank."""

    @property
    def state_bytes(self) -> int:
        """Of one rank."""


class CollectiveRow(Protocol):
    """A collective."""

    @property
    def kind(self) -> str:
        """Its name."""

    @property
    def num_bytes(self) -> int:
        """Its payload."""

    @property
    def seconds(self) -> float:
        """On the wire."""

    @property
    def is_backward(self) -> bool:
        """In which pass it runs."""


class OperatorRow(Protocol):
    """An operator of a module."""

    @property
    def key(self) -> str:
        """As ``operators`` lines name it."""

    @property
    def rule(self) -> str:
        """Placements in and out."""

    @property
    def output_bytes(self) -> int:
        """Of the local result."""

    @property
    def forward_s(self) -> float:
        """On the device."""

    @property
    def backward_s(self) -> float:
        """On the device."""

    @property
    def collectives(self) -> Sequence[CollectiveRow]:
        """On its account."""


def parameters_table(parameters: Iterable[ParameterRow]) -> Table:
    """One row a parameter."""
    table = plain_table("parameter", "shape", "placement", ">elements a rank", ">state a rank")
    for parameter in parameters:
        table.add_row(
            parameter.name,
            " x ".join(map(str, parameter.shape)),
            parameter.placement,
            f"{parameter.num_elements:,}",
            format_bytes(parameter.state_bytes),
        )
    return table


def operators_table(operators: Iterable[OperatorRow]) -> Table:
    """One row an operator, with the collectives on its account below each other."""
    table = plain_table("operator", "placements", ">result", ">forward", ">backward", "collectives")
    for operator in operators:
        sent = "\n".join(
            f"{one.kind} {format_bytes(one.num_bytes)}, {format_seconds(one.seconds)}"
            + (" (backward)" if one.is_backward else "")
            for one in operator.collectives
        )
        table.add_row(
            operator.key,
            operator.rule,
            format_bytes(operator.output_bytes),
            format_seconds(operator.forward_s),
            format_seconds(operator.backward_s) if operator.backward_s else "",
            sent,
        )
    return table
