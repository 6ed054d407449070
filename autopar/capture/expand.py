"""Replacing each repeated call of a traced graph by a copy of the call that it repeats."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from autopar.capture.node_origin import module_of, source_line_of, source_line_within
from autopar.capture.repeat_operators import ENTER, LEAVE, NONE, REPEAT
from autopar.capture.traced_call import is_numeric

aten = torch.ops.aten


class ExpansionError(Exception):
    """The graph is not as it was when the calls were compared; it has to be traced without repeats."""


@dataclass(frozen=True, slots=True)
class _Call:
    """A call that was traced in full.

    Attributes:
        inputs: nodes of its tensor arguments.
        own: nodes of its parameters and buffers.
        operators: what it computed, in order.
        made: nodes of the tensors that it made.
        module: qualified name of the module.
        depth: how many calls of watched modules its stack traces show, itself included.
    """

    inputs: list[fx.Node]
    own: list[fx.Node]
    operators: list[fx.Node]
    made: list[fx.Node]
    module: str
    depth: int


def expand_repeats(graph: fx.Graph, withheld: Sequence[Sequence[fx.Node]] = ()) -> None:
    """Expands the graph in place and removes the marks.

    Copies get ``meta["module"]`` and ``meta["source_line"]``; the rest of their meta data is shared.

    Args:
        withheld: placeholders of the parameters of layers, by the numbers that stand for them.

    Raises:
        ExpansionError: a repeated call reads something that is not its own.
    """
    calls: dict[int, _Call] = {}
    open_calls: dict[int, fx.Node] = {}
    for node in list(graph.nodes):
        if node.target is ENTER:
            open_calls[_index(node)] = node
        elif node.target is LEAVE:
            enter = open_calls[_index(node)]
            calls[_index(node)] = _call(enter, node)
        elif node.target is REPEAT:
            _expand(graph, node, calls[_index(node)], _own(node, withheld))
    for node in list(graph.nodes):
        if node.target in (ENTER, LEAVE):
            graph.erase_node(node)


def _index(mark: fx.Node) -> int:
    index = mark.args[-1]
    assert isinstance(index, int)
    return index


def _nodes(value: object) -> list[fx.Node]:
    assert isinstance(value, list | tuple)
    return [node for node in value if isinstance(node, fx.Node)]


def _call(enter: fx.Node, leave: fx.Node) -> _Call:
    operators = []
    node = enter.next
    while node is not leave:
        if node.op != "call_function":
            raise ExpansionError(f"'{node.name}' is no operator")
        operators.append(node)
        node = node.next
    depth = source_line_within(enter, 0)[1]
    return _Call(
        _nodes(enter.args[0]),
        _nodes(enter.args[1]),
        operators,
        _nodes(leave.args[0]),
        module_of(enter),
        depth,
    )


def _correspond(first: fx.Node, second: fx.Node, new: dict[fx.Node, fx.Node]) -> None:
    """Pairs two inputs, and what they are behind a ``detach``: each region without gradient has its own."""
    new[first] = second
    while first.target is second.target is aten.detach.default:
        first, second = first.all_input_nodes[0], second.all_input_nodes[0]
        new.setdefault(first, second)


def _own(repeat: fx.Node, withheld: Sequence[Sequence[fx.Node]]) -> Sequence[fx.Node]:
    """The parameters and buffers of a repeated call."""
    number = repeat.args[3]
    assert isinstance(number, int)
    return _nodes(repeat.args[1]) if number == NONE else withheld[number]


def _expand(graph: fx.Graph, repeat: fx.Node, call: _Call, own: Sequence[fx.Node]) -> None:
    new: dict[fx.Node, fx.Node] = {}
    for first, second in zip(call.own, own, strict=True):
        _correspond(first, second, new)
    for first, second in zip(call.inputs, _nodes(repeat.args[0]), strict=True):
        _correspond(first, second, new)
    module, line = module_of(repeat), source_line_of(repeat)
    with graph.inserting_before(repeat):
        for node in call.operators:
            if is_numeric(node):
                continue
            for source in node.all_input_nodes:
                if source not in new:
                    if not is_numeric(source):
                        raise ExpansionError(f"'{source.name}' is outside the call of '{call.module}'")
                    new[source] = source  # sizes are the same in every call
            copy = graph.node_copy(node, new.__getitem__)
            inside = module_of(node)
            if inside == call.module or inside.startswith(f"{call.module}."):
                inside = module + inside[len(call.module) :]
            copy.meta["module"] = inside
            copy.meta["source_line"] = source_line_within(node, call.depth)[0] or line
            new[node] = copy
    for user in list(repeat.users):
        if user.target is not operator.getitem:
            raise ExpansionError(f"'{user.name}' reads all results of a call at once")
        position = user.args[1]
        assert isinstance(position, int)
        user.replace_all_uses_with(new[call.made[position]])
        graph.erase_node(user)
    graph.erase_node(repeat)
