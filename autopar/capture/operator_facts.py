"""What operators do besides computing: draw random numbers, write to their arguments, return views."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

_CASTS = {
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten.to.other,
    aten.type_as.default,
    aten._autocast_to_full_precision.default,
    aten._autocast_to_reduced_precision.default,
}


def is_cast(node: fx.Node) -> bool:
    """Whether the operator only converts the dtype of a tensor."""
    return node.op == "call_function" and node.target in _CASTS


def is_random(node: fx.Node) -> bool:
    """Whether the operator draws from the random generator."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    probability = argument_value(node, "dropout_p", argument_value(node, "p", None))
    return bool(probability != 0.0)


def mutated_arguments(node: fx.Node) -> tuple[fx.Node, ...]:
    """The arguments that the operator writes to: by its schema, and batch normalisation's statistics."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return ()
    names = [arg.name for arg in node.target._schema.arguments if arg.alias_info and arg.alias_info.is_write]
    training = argument_value(node, "training", argument_value(node, "use_input_stats", False))
    if training and any(arg.name == "running_mean" for arg in node.target._schema.arguments):
        names += ["running_mean", "running_var"]
    written = (argument_value(node, name, None) for name in names)
    return tuple(value for value in written if isinstance(value, fx.Node))


def has_effect(node: fx.Node) -> bool:
    """Whether the node must stay although nobody reads it."""
    return node.op in ("placeholder", "output") or bool(mutated_arguments(node))


def argument_value(node: fx.Node, name: str, default: Any) -> Any:
    """The operator's argument ``name`` as given or defaulted; ``default`` where it has no such argument."""
    assert isinstance(node.target, torch._ops.OpOverload)
    for position, argument in enumerate(node.target._schema.arguments):
        if argument.name == name:
            if name in node.kwargs:
                return node.kwargs[name]
            if position < len(node.args):
                return node.args[position]
            return argument.default_value if argument.has_default_value() else default
    return default


def aliased_arguments(node: fx.Node) -> tuple[fx.Node, ...]:
    """The arguments whose storage the result may share: what it is a view of, what it writes in place."""
    if node.target is operator.getitem:
        return tuple(node.all_input_nodes)
    if not isinstance(node.target, torch._ops.OpOverload):
        return ()
    if node.target.is_view:
        source = node.args[0] if node.args else None
        return (source,) if isinstance(source, fx.Node) and not _converts(node, source) else ()
    return mutated_arguments(node) if node.target._schema.is_mutable else ()


def _converts(node: fx.Node, source: fx.Node) -> bool:
    # ``to`` is a view only where it has nothing to convert.
    before, after = source.meta.get("val"), node.meta.get("val")
    return (
        isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor) and before.dtype != after.dtype
    )
