"""What ``explain --node`` shows of one module: its parameters, operators and collectives, and their tables.

Rows that differ in numbers of layers only are one row, which says how many they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from rich.table import Table

from autopar.plan.patterns import generalised
from autopar.report.text import plain_table
from autopar.units import format_bytes, format_seconds

_Row = TypeVar("_Row", "ParameterUse", "OperatorUse")


@dataclass(frozen=True, slots=True)
class CollectiveCall:
    """A collective on the tensor axis.

    Attributes:
        num_bytes: as the cost model counts them: of the whole tensor; for all-to-all of one rank's piece.
        seconds: on the wire.
        is_backward: whether it runs in the backward pass.
    """

    kind: str
    num_bytes: int
    seconds: float
    is_backward: bool


@dataclass(frozen=True, slots=True)
class OperatorUse:
    """An operator of a module as one rank runs it.

    Attributes:
        key: as ``operators`` lines name it.
        rule: placements in and out, e.g. ``replicate, shard(0) -> shard(2)``.
        output_bytes: of the local result.
        forward_s, backward_s: on the device.
        collectives: inside it, of what it reads, and of its result for readers outside of the module; forward
            and backward.
    """

    key: str
    operator: str
    rule: str
    output_bytes: int
    forward_s: float
    backward_s: float
    collectives: tuple[CollectiveCall, ...]


@dataclass(frozen=True, slots=True)
class ParameterUse:
    """A parameter of a module.

    Attributes:
        shape: whole.
        num_elements: of one rank's piece on the tensor axis.
        state_bytes: of one rank: masters, compute copy, gradient and optimiser state, under the ZeRO level.
    """

    name: str
    placement: str
    shape: tuple[int, ...]
    num_elements: int
    state_bytes: int


def parameters_table(parameters: Iterable[ParameterUse]) -> Table:
    """One row a parameter."""
    table = plain_table("parameter", "shape", "placement", ">elements a rank", ">state a rank")
    table.columns[0].no_wrap = True
    general = ((one, replace(one, name=generalised(one.name))) for one in parameters)
    for parameter, name in _alike((one, alike, one.name, alike.name) for one, alike in general):
        table.add_row(
            name,
            " x ".join(map(str, parameter.shape)),
            parameter.placement,
            f"{parameter.num_elements:,}",
            format_bytes(parameter.state_bytes),
        )
    return table


def operators_table(operators: Iterable[OperatorUse]) -> Table:
    """One row an operator, with the collectives on its account below each other."""
    table = plain_table("operator", "placements", ">result", ">forward", ">backward", "collectives")
    table.columns[0].min_width = 24
    general = ((one, replace(one, key=_general_key(one.key))) for one in operators)
    for operator, key in _alike((one, alike, one.key, alike.key) for one, alike in general):
        sent = "\n".join(
            f"{one.kind} {format_bytes(one.num_bytes)}, {format_seconds(one.seconds)}"
            + (" (backward)" if one.is_backward else "")
            for one in operator.collectives
        )
        table.add_row(
            key,
            operator.rule,
            format_bytes(operator.output_bytes),
            format_seconds(operator.forward_s),
            format_seconds(operator.backward_s) if operator.backward_s else "",
            sent,
        )
    return table


def _alike(rows: Iterable[tuple[_Row, _Row, str, str]]) -> Iterator[tuple[_Row, str]]:
    """The first of the rows that are the same but for the numbers in their names, with a name for all."""
    groups: dict[_Row, list[tuple[_Row, str, str]]] = {}
    for row, general, name, general_name in rows:
        groups.setdefault(general, []).append((row, name, general_name))
    for members in groups.values():
        row, name, general_name = members[0]
        yield row, name if len(members) == 1 else f"{general_name} ({len(members)} x)"


def _general_key(key: str) -> str:
    module, _, operator = key.rpartition(":")
    return f"{generalised(module)}:{operator}"
