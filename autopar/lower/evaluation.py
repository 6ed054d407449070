"""Programs captured in training mode, as they evaluate: dropout off, BatchNorm by its running statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from autopar.capture.model_graph import Block, InputKind
from autopar.capture.operator_facts import aliased_arguments, is_random
from autopar.errors import UsageError
from autopar.lower import local_operators
from autopar.sharding.aliasing import is_mutable

# Value of an argument in evaluation, by its name in the operator's schema.
_OFF: dict[str, Any] = {"train": False, "training": False, "dropout_p": 0.0, "use_input_stats": False}


def evaluation_program(program: fx.GraphModule) -> fx.GraphModule:
    """A copy of a lowered program with everything switched off that serves training alone."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        values[node] = graph.node_copy(node, values.__getitem__)
    for node in graph.nodes:
        _switch_off(node)
    return fx.GraphModule(torch.nn.Module(), graph)


def check_evaluation(block: Block) -> None:
    """Refuses a block that draws random numbers by other means than dropout, or computes with a buffer that
    it has just changed: evaluation may do neither, and a graph captured in training does not tell.

    Raises:
        UsageError: names the line of the model.
    """
    reader = _reader_of_changed_buffer(block)
    if reader is not None:
        raise UsageError(
            f"{_place(reader, block)}: the model changes a buffer in training and computes with it afterwards"
            f" ({reader.target}), and its graph does not say whether evaluation changes it, too; change it"
            " after its last use, or load full_state_dict() into the plain model to evaluate it"
        )
    for node in block.graph.nodes:
        if node.op != "call_function" or not is_random(node):
            continue
        if not any(argument.name in _OFF for argument in node.target._schema.arguments):
            raise UsageError(
                f"{_place(node, block)}: the model draws random numbers in training ({node.target}), and its"
                " graph does not say what it does in evaluation; load full_state_dict() into the plain model"
                " to evaluate it"
            )


def _place(node: fx.Node, block: Block) -> str:
    return str(node.meta.get("source_line") or node.meta.get("module") or block.name)


def _reader_of_changed_buffer(block: Block) -> fx.Node | None:
    """The first call that reads a buffer after another one has written to it in place."""
    buffers = {entry.placeholder for entry in block.inputs if entry.kind is InputKind.BUFFER}
    shown: dict[fx.Node, fx.Node] = {}  # a view, or the result of a write -> the buffer
    changed: set[fx.Node] = set()
    for node in block.graph.nodes:
        if node.op == "placeholder":
            shown.update({node: node} if node.name in buffers else {})
            continue
        sharing = aliased_arguments(node) if node.op == "call_function" else ()
        read = [argument for argument in node.all_input_nodes if argument not in sharing]
        if any(shown.get(argument) in changed for argument in read):
            return node  # type: ignore[no-any-return]
        for argument in sharing:
            if argument in shown:
                shown[node] = shown[argument]
                changed.update({shown[argument]} if is_mutable(node.target) else ())
    return None


def _switch_off(node: fx.Node) -> None:
    wraps = node.target is local_operators.own_stream
    operator = node.args[1] if wraps else node.target
    if node.op != "call_function" or not isinstance(operator, OpOverload):
        return
    first = 2 if wraps else 0  # behind the axis and the operator itself
    names = [argument.name for argument in operator._schema.arguments]
    given = dict(zip(names, node.args[first:], strict=False)) | dict(node.kwargs)
    if "running_mean" in names and given.get("running_mean") is None:
        return  # without running statistics, those of the batch count in evaluation, too
    for name in set(names) & set(_OFF):
        position = first + names.index(name)
        if position < len(node.args):
            node.args = (*node.args[:position], _OFF[name], *node.args[position + 1 :])
        elif name in node.kwargs or operator._schema.arguments[names.index(name)].default_value != _OFF[name]:
            node.kwargs = {**node.kwargs, name: _OFF[name]}
