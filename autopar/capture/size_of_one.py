"""Where a model may be another one for a batch of a single sample.

A symbolic size stands for 2 and more while tracing, so the exporter answers ``x.shape[0] == 1`` without
noting a condition, and ``squeeze()`` without looking. Both are watched here.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx

from autopar.capture.user_code import is_user_file

_COMPARISONS = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__")
_SQUEEZES = (torch.ops.aten.squeeze.default, torch.ops.aten.squeeze.dim, torch.ops.aten.squeeze.dims)
_OTHER_SIZE = 2

# (module, function) that expands (1, seq) to (batch, seq) unless it has that size: the same either way.
_SAME_EITHER_WAY = {("transformers.masking_utils", "_preprocess_mask_arguments")}


@contextmanager
def comparisons_with_one() -> Iterator[list[str]]:
    """Inside, notes where code outside of torch makes a decision that is another one for a single sample.

    Yields:
        ``file:line`` of each, filled in as the code runs.
    """
    places: list[str] = []
    before = {name: vars(torch.SymInt)[name] for name in (*_COMPARISONS, "__bool__")}

    def noting(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        relation: Callable[..., Any] = getattr(int, name)

        @functools.wraps(method)
        def compare(size: torch.SymInt, *others: Any) -> Any:
            caller = sys._getframe(1)
            if _matters(caller) and _differs(relation, (size, *others)):
                places.append(f"{caller.f_code.co_filename}:{caller.f_lineno}")
            return method(size, *others)

        return compare

    for name, method in before.items():
        setattr(torch.SymInt, name, noting(name, method))
    try:
        yield places
    finally:
        for name, method in before.items():
            setattr(torch.SymInt, name, method)


def squeezes_the_batch(graph: fx.Graph) -> bool:
    """Whether an operator drops a dim that has size one only for a single sample."""
    return any(_squeezes(node) for node in graph.nodes if node.target in _SQUEEZES)


def _squeezes(node: fx.Node) -> bool:
    shape = node.all_input_nodes[0].meta["val"].shape
    dims = node.args[1] if len(node.args) > 1 else range(len(shape))
    chosen = (dims,) if isinstance(dims, int) else dims
    sizes = (shape[dim] for dim in chosen if shape)  # type: ignore[union-attr]
    return any(isinstance(size, torch.SymInt) and _at(size, 1) == 1 for size in sizes)


def _matters(caller: FrameType) -> bool:
    if (caller.f_globals.get("__name__"), caller.f_code.co_name) in _SAME_EITHER_WAY:
        return False
    return is_user_file(caller.f_code.co_filename)


def _differs(relation: Callable[..., Any], values: tuple[Any, ...]) -> bool:
    if not all(isinstance(value, int | torch.SymInt) for value in values):
        return False
    return bool(relation(*(_at(value, 1) for value in values))) != bool(
        relation(*(_at(value, _OTHER_SIZE) for value in values))
    )


def _at(value: int | torch.SymInt, size: int) -> int:
    if not isinstance(value, torch.SymInt):
        return value
    expression: sympy.Basic = value.node.expr
    return int(expression.xreplace(dict.fromkeys(expression.free_symbols, sympy.Integer(size))).doit())
