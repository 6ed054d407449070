"""Switching dropout off on both sides of a comparison: random masks of two runs cannot agree."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from types import FunctionType
from typing import Any

import torch
from torch import fx
from torch.overrides import TorchFunctionMode

from autopar.capture.model_graph import Block, ModelGraph
from autopar.capture.operator_facts import is_random
from autopar.errors import UsageError
from autopar.verify.edited_graph import edited

# Argument that holds the probability, by name of the function or operator.
_PROBABILITY = {
    "dropout": "p",
    "dropout_": "p",
    "dropout1d": "p",
    "dropout2d": "p",
    "dropout3d": "p",
    "feature_dropout": "p",
    "feature_dropout_": "p",
    "alpha_dropout": "p",
    "alpha_dropout_": "p",
    "feature_alpha_dropout": "p",
    "native_dropout": "p",
    "scaled_dot_product_attention": "dropout_p",
    "lstm": "dropout",
    "gru": "dropout",
    "rnn_tanh": "dropout",
    "rnn_relu": "dropout",
}
_POSITION = {"p": 1, "dropout_p": 4, "dropout": 5}


class DropoutOff(TorchFunctionMode):
    """While active, every dropout of eagerly run modules keeps everything."""

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        found = _probability_of(func)
        if found is not None:
            argument, position = found
            if argument in kwargs or position >= len(args):
                kwargs[argument] = 0.0
            else:
                args = (*args[:position], 0.0, *args[position + 1 :])
        return func(*args, **kwargs)


def _probability_of(func: Any) -> tuple[str, int] | None:
    """Name and position of a function's dropout probability."""
    argument = _PROBABILITY.get(getattr(func, "__name__", ""))
    if not isinstance(func, FunctionType):
        return None if argument is None else (argument, _POSITION[argument])
    # What a Python function calls inside is not seen: multi_head_attention_forward hands its own argument on.
    try:
        names = list(inspect.signature(func).parameters)
    except ValueError:  # a wrapper around what is written in C, as Tensor.__pow__
        return None
    argument = argument if argument in names else "dropout_p"
    return (argument, names.index(argument)) if argument in names else None


def without_dropout(graph: ModelGraph) -> tuple[ModelGraph, bool]:
    """The graph with every dropout probability 0, and whether there was any other.

    Raises:
        UsageError: the model draws other random numbers, which two runs cannot share.
    """
    return edited(graph, _switch_all_off)


def _switch_all_off(graph: fx.Graph, block: Block) -> bool:
    changed = sum(_switch_off(node) for node in graph.nodes) > 0
    for node in graph.nodes:
        if node.op == "call_function" and is_random(node) and not _probability_argument(node):
            where = node.meta.get("source_line") or node.meta.get("module") or block.name
            raise UsageError(
                f"{where}: the model draws random numbers ({node.target}), so that no two runs agree and"
                " verify cannot compare; give the model an argument that turns this off, and pass it with"
                " --arg"
            )
    return changed


def _switch_off(node: fx.Node) -> bool:
    argument = _probability_argument(node)
    if argument is None or not isinstance(node.target, torch._ops.OpOverload):
        return False
    for position, declared in enumerate(node.target._schema.arguments):
        if declared.name != argument:
            continue
        if position < len(node.args):
            before = node.args[position]
            node.args = (*node.args[:position], 0.0, *node.args[position + 1 :])
        else:
            before = node.kwargs.get(argument, declared.default_value)
            node.kwargs = {**node.kwargs, argument: 0.0} if argument in node.kwargs else node.kwargs
        return before not in (0, 0.0, None)
    return False


def _probability_argument(node: fx.Node) -> str | None:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    return _PROBABILITY.get(node.target._schema.name.removeprefix("aten::"))
