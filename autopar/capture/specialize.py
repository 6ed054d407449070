"""From symbolic sizes to those of one micro-batch.

Nothing is traced again: every shape, stride and size argument of the exported graph is an expression in the
batch symbols, and is evaluated.
"""

from __future__ import annotations

from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx
from torch._subclasses import FakeTensorMode

from autopar.capture.fake_model import new_fake_mode

META_KEYS = ("module", "source_line", "operator_key", "no_grad")


class Specializer:
    """Copies nodes of the exported graph with the batch symbols replaced by ``size``.

    Attributes:
        size: samples in the micro-batch.
    """

    def __init__(self, symbols: frozenset[sympy.Symbol], size: int) -> None:
        self.size = size
        self._sizes = dict.fromkeys(symbols, size)
        self._mode: FakeTensorMode = new_fake_mode()
        self._numbers: dict[Any, int | float | bool] = {}
        self._tensors: dict[Any, torch.Tensor] = {}

    def copy(
        self, node: fx.Node, graph: fx.Graph, copies: dict[fx.Node, fx.Node], value: Any = None
    ) -> fx.Node:
        """Appends a copy of ``node`` to ``graph``, under its name, with arguments from ``copies``.

        ``value`` is its fake value, where that is known.
        """

        def argument(source: fx.Node) -> Any:
            return self.number(source.meta["val"]) if is_number(source) else copies[source]

        args, kwargs = fx.map_arg(node.args, argument), fx.map_arg(node.kwargs, argument)
        copy = graph.create_node(node.op, node.target, args, kwargs, node.name)
        copy.name = node.name
        copy.meta = {key: node.meta[key] for key in META_KEYS}
        copy.meta["val"] = self.value(node.meta["val"]) if value is None else value
        copies[node] = copy
        return copy

    def number(self, value: Any) -> int | float | bool:
        """The value of a symbolic number."""
        if isinstance(value, int | float | bool):
            return value
        expression = value.node.expr
        if expression not in self._numbers:
            result = expression.subs(self._sizes)
            if isinstance(value, torch.SymBool):
                self._numbers[expression] = bool(result)
            else:
                self._numbers[expression] = int(result) if isinstance(value, torch.SymInt) else float(result)
        return self._numbers[expression]

    def value(self, value: Any, fresh: bool = False) -> Any:
        """The fake value with static sizes; equal ones are one unless ``fresh`` (storage of its own)."""
        if isinstance(value, list | tuple):
            return tuple(self.value(item) for item in value)
        if not isinstance(value, torch.Tensor):
            return value
        shape = tuple(int(self.number(dim)) for dim in value.shape)
        stride = tuple(int(self.number(dim)) for dim in value.stride())
        key = (shape, stride, value.dtype)
        if not fresh and key in self._tensors:
            return self._tensors[key]
        with self._mode:
            tensor = torch.empty_strided(shape, stride, dtype=value.dtype, device="cpu")
        return tensor if fresh else self._tensors.setdefault(key, tensor)


def is_number(node: fx.Node) -> bool:
    """Whether the node computes a size and not a tensor."""
    number = int | float | bool | torch.SymInt | torch.SymFloat | torch.SymBool
    return node.op == "call_function" and isinstance(node.meta["val"], number)


def specialize(graph: fx.Graph, specializer: Specializer) -> fx.Graph:
    """The whole graph at the specializer's size, without its size computations."""
    result = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if not is_number(node):
            specializer.copy(node, result, copies)
    result.lint()
    return result
