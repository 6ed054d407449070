"""From the graph with a symbolic batch to the graph of one micro-batch size.

Symbolic sizes are evaluated, not traced again: every shape and stride is an expression in the batch symbols.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch import fx
from torch._subclasses import FakeTensorMode

Evaluate = Callable[[Any], int | float | bool]


def specialize(
    graph: fx.Graph, symbols: frozenset[sympy.Symbol], size: int, mode: FakeTensorMode
) -> fx.Graph:
    """A copy of ``graph`` without symbols, under the same node names, its fake values in ``mode``."""
    evaluate = _evaluator(symbols, size)
    result = fx.Graph()
    copies: dict[fx.Node, Any] = {}

    def argument(node: fx.Node) -> Any:
        return copies[node]

    for node in graph.nodes:
        value = node.meta.get("val")
        if node.op != "output" and _is_number(value):
            copies[node] = evaluate(value)
            continue
        copy = result.node_copy(node, argument)
        copy.name = node.name
        copy.meta = {key: node.meta[key] for key in _KEPT if key in node.meta}
        if value is not None:
            copy.meta["val"] = _static(value, evaluate, mode)
        copies[node] = copy
    result.lint()
    return result


_KEPT = ("module", "source_line", "operator_key", "no_grad")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | bool | torch.SymInt | torch.SymFloat | torch.SymBool)


def _evaluator(symbols: frozenset[sympy.Symbol], size: int) -> Evaluate:
    known: dict[Any, int | float | bool] = {}
    sizes = dict.fromkeys(symbols, size)

    def evaluate(value: Any) -> int | float | bool:
        if isinstance(value, int | float | bool):
            return value
        expression = value.node.expr
        if expression not in known:
            result = expression.subs(sizes)
            if isinstance(value, torch.SymBool):
                known[expression] = bool(result)
            else:
                known[expression] = int(result) if isinstance(value, torch.SymInt) else float(result)
        return known[expression]

    return evaluate


def _static(value: Any, evaluate: Evaluate, mode: FakeTensorMode) -> Any:
    if isinstance(value, torch.Tensor):
        shape = [int(evaluate(dim)) for dim in value.shape]
        stride = [int(evaluate(dim)) for dim in value.stride()]
        with mode:
            return torch.empty_strided(shape, stride, dtype=value.dtype, device="cpu")
    if isinstance(value, list | tuple):
        return tuple(_static(item, evaluate, mode) for item in value)
    return value
