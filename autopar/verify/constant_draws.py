"""Random numbers made constants on both sides of a comparison: what two runs draw cannot agree.

A half stands for what is drawn from an interval or a distribution, a one for what is drawn to keep or drop,
the least for what is drawn from a range of integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from autopar.capture.model_graph import Block, ModelGraph
from autopar.verify.edited_graph import edited

aten = torch.ops.aten

_VALUES = {
    "rand": 0.5,
    "randn": 0.5,
    "rand_like": 0.5,
    "randn_like": 0.5,
    "uniform": 0.5,
    "normal": 0.5,
    "exponential": 0.5,
    "bernoulli": 1.0,
}
_RANGES = ("randint", "randint_like")
_KEPT = ("dtype", "layout", "device")


@dataclass(frozen=True, slots=True)
class _Constant:
    """The operator that makes a constant instead of drawing."""

    target: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class ConstantDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, what eagerly run modules draw is constant."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        constant = _constant_for(func, args, kwargs)
        return (
            func(*args, **kwargs) if constant is None else constant.target(*constant.args, **constant.kwargs)
        )


def with_constant_draws(graph: ModelGraph) -> tuple[ModelGraph, bool]:
    """The model with constants for what it draws, dropout apart, and whether there was any."""
    return edited(graph, _make_constant)


def _make_constant(graph: fx.Graph, block: Block) -> bool:
    changed = False
    for node in graph.nodes:
        if node.op == "call_function":
            constant = _constant_for(node.target, node.args, node.kwargs)
            if constant is not None:
                node.target, node.args, node.kwargs = constant.target, constant.args, constant.kwargs
                changed = True
    return changed


def _constant_for(func: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Constant | None:
    """None for an operator that draws nothing, or is not known."""
    if not isinstance(func, OpOverload) or torch.Tag.nondeterministic_seeded not in func.tags:
        return None
    name = func._schema.name.removeprefix("aten::")
    plain = name.removesuffix("_").removesuffix("_functional")
    if plain in _VALUES:
        value: float = _VALUES[plain]
    elif plain in _RANGES:
        low = _position(func, "low")
        value = args[low] if low >= 0 else 0
    else:
        return None
    like = next((arg for arg in args if isinstance(arg, Tensor | fx.Node)), None)
    if name.endswith("_"):
        return _Constant(aten.fill_.Scalar, (like, value), {})
    kept = {key: kwargs[key] for key in _KEPT if kwargs.get(key) is not None}
    if like is not None:
        return _Constant(aten.full_like.default, (like, value), kept)
    if plain in _RANGES:
        kept.setdefault("dtype", torch.int64)
    return _Constant(aten.full.default, (args[_position(func, "size")], value), kept)


def _position(func: OpOverload, name: str) -> int:
    """Of an argument; -1 where there is none of that name."""
    return next((i for i, argument in enumerate(func._schema.arguments) if argument.name == name), -1)
