"""Programs captured in training mode, as they evaluate: dropout off, BatchNorm by its running statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from autopar.capture.model_graph import Block
from autopar.capture.operator_facts import is_random
from autopar.errors import UsageError
from autopar.lower import local_operators

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
    """Refuses a block that draws random numbers by other means than dropout.

    Raises:
        UsageError: names the line of the model.
    """
    for node in block.graph.nodes:
        if node.op != "call_function" or not is_random(node):
            continue
        if not any(argument.name in _OFF for argument in node.target._schema.arguments):
            where = node.meta.get("source_line") or node.meta.get("module") or block.name
            raise UsageError(
                f"{where}: the model draws random numbers in training ({node.target}), and its graph does not"
                " say what it does in evaluation; load full_state_dict() into the plain model to evaluate it"
            )


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
