"""An fx node as the rules see it: arguments by schema name, shapes, and which shards divide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from autopar.sharding.placement import REPLICATE, Placement, Shard
from autopar.sharding.rule import Rule

Shape = tuple[int, ...]
Wanted = Placement | Sequence[Placement]


def is_tensor_node(value: object) -> bool:
    """Whether ``value`` is a node that stands for a tensor or a tuple of tensors."""
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), (torch.Tensor, tuple, list))


def tensor_arguments(node: fx.Node) -> tuple[fx.Node, ...]:
    """The tensor arguments of ``node`` in flat order, with repeats: what ``Rule.inputs`` runs parallel to."""
    found: list[fx.Node] = []

    def note(argument: fx.Node) -> fx.Node:
        if is_tensor_node(argument):
            found.append(argument)
        return argument

    fx.map_arg((node.args, dict(node.kwargs)), note)
    return tuple(found)


def whole_bytes(node: fx.Node) -> int:
    """Bytes of the unsharded value of a node."""
    value = node.meta.get("val")
    tensors = value if isinstance(value, (tuple, list)) else (value,)
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))


def _tensors_in(value: object) -> tuple[fx.Node, ...]:
    if is_tensor_node(value):
        assert isinstance(value, fx.Node)
        return (value,)
    if isinstance(value, (list, tuple)):
        return tuple(node for item in value for node in _tensors_in(item))
    return ()


class Operator:
    """One call in a graph, with what the rule functions ask about it.

    Attributes:
        node: the call.
        degree: size of the tensor axis.
        fused: numbers of equal parts to consider for a shard, 1 first.
        tensors: tensor arguments in flat order.
    """

    def __init__(self, node: fx.Node, degree: int, fused: frozenset[int]) -> None:
        self.node = node
        self.degree = degree
        self.fused = tuple(sorted(fused | {1}))
        self.tensors = tensor_arguments(node)
        self.arguments = _arguments_by_name(node)

    def argument(self, name: str, default: Any = None) -> Any:
        """Value of the argument ``name`` of the operator's schema, or ``default`` if it has none."""
        return self.arguments.get(name, default)

    def has(self, name: str) -> bool:
        """Whether the tensor argument ``name`` is given."""
        return is_tensor_node(self.arguments.get(name))

    def shape(self, name: str) -> Shape:
        """Shape of the tensor argument ``name``."""
        return shape_of(self.arguments[name])

    @property
    def value(self) -> Any:
        """Fake result: a tensor, or a tuple of tensors."""
        return self.node.meta["val"]

    @property
    def output_shape(self) -> Shape:
        """Shape of the (first) result."""
        value = self.value[0] if isinstance(self.value, (tuple, list)) else self.value
        return tuple(value.shape)

    def divides(self, size: int, blocks: int = 1) -> bool:
        """Whether a dim of ``size`` can be sharded inside each of ``blocks`` parts."""
        return size > 1 and size % (self.degree * blocks) == 0

    def shards(self, shape: Shape) -> Iterator[Shard]:
        """Every shard of a tensor of ``shape`` that divides, by dim, then by number of fused parts."""
        for dim, size in enumerate(shape):
            for blocks in self.fused:
                if self.divides(size, blocks):
                    yield Shard(dim, blocks)

    def rule(
        self,
        output: Placement,
        wanted: Mapping[str, Wanted],
        *,
        local: str | None = None,
        rest: tuple[Placement, ...] = (),
    ) -> Rule:
        """A rule from placements by argument name; what is not named is replicated.

        A tensor-list argument takes one placement for all its tensors or a sequence with one for each.
        """
        schema = [a.name for a in self.node.target._schema.arguments]  # type: ignore[union-attr]
        by_name = dict(zip(schema, self.node.args, strict=False)) | dict(self.node.kwargs)
        inputs: list[Placement] = []
        for name, value in by_name.items():
            tensors = _tensors_in(value)
            choice = wanted.get(name, REPLICATE)
            each = (choice,) * len(tensors) if isinstance(choice, Placement) else tuple(choice)
            assert len(each) == len(tensors), (self.node, name, each)
            inputs.extend(each)
        return Rule(tuple(inputs), output, local, rest)


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """Shape to which ``shapes`` broadcast; they are known to."""
    rank = max(len(shape) for shape in shapes)
    filled = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*filled, strict=True))


def shape_of(node: fx.Node) -> Shape:
    """Shape of a tensor node."""
    return tuple(node.meta["val"].shape)


def _arguments_by_name(node: fx.Node) -> dict[str, Any]:
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    schema = node.target._schema.arguments
    found = {a.name: a.default_value for a in schema if a.has_default_value()}
    found |= dict(zip((a.name for a in schema), node.args, strict=False))
    return found | dict(node.kwargs)
