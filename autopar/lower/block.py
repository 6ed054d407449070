"""From a block and its sharding to each rank's program: local tensors, and explicit collectives between them.

The program is an fx graph whose first placeholder is the tensor axis (``lower.axis.TensorAxis``) and whose
other placeholders are the block's inputs as local tensors. Every node has ``meta["val"]``, a fake tensor of
*local* shape. Nodes that communicate have ``meta["collectives"]``, a tuple of ``Transfer``; conversions
have ``meta["lowered_from"]``, the name of the node in the block's graph whose value they convert.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from autopar.capture.model_graph import Block
from autopar.hardware.link import CollectiveKind
from autopar.lower import collectives, local_operators
from autopar.lower.axis import FakeAxis
from autopar.lower.literals import local_literals
from autopar.sharding.aliasing import pinned_nodes
from autopar.sharding.gradients import nodes_with_gradient
from autopar.sharding.placement import REPLICATE, Placement, local_shape
from autopar.sharding.propagation import BlockSharding, Placed, value_placement, whole_bytes
from autopar.sharding.redistribution import Collective, conversion
from autopar.sharding.rule import Rule
from autopar.sharding.rules.operator import tensor_arguments
from autopar.sharding.rules.table import has_rules

# Local operators that are handed the operator which they wrap.
_WRAPPERS = frozenset({"own_stream", "mean_of_shards"})
_COPIED_META = ("module", "source_line", "operator_key", "no_grad")


@dataclass(frozen=True, slots=True)
class Transfer:
    """One collective that a node of a lowered graph runs.

    Attributes:
        kind: which collective.
        num_bytes: as ``CollectiveKind`` counts them: of the whole tensor, for all-to-all of one rank's piece.
        backward: whether it runs in the backward pass.
    """

    kind: CollectiveKind
    num_bytes: int
    backward: bool


@dataclass(frozen=True, slots=True)
class LoweredBlock:
    """One rank's program for a block; the same on all ranks of the tensor axis.

    Attributes:
        graph: placeholders are the axis, then the block's inputs in order; returns a tuple.
        sharding: what it was lowered from.
        fallbacks: operator keys of what runs replicated for lack of a rule.
    """

    graph: fx.GraphModule
    sharding: BlockSharding
    fallbacks: tuple[str, ...]


def lower_block(block: Block, sharding: BlockSharding) -> LoweredBlock:
    """Lowers ``block``; at degree 1 that is its own graph behind an axis that nothing reads."""
    lowering = _Lowering(block, sharding)
    for node in block.graph.nodes:
        if node.op == "placeholder":
            lowering.add_placeholder(node)
        elif node.op == "call_function":
            lowering.add_call(node)
        elif node.op == "output":
            lowering.add_output(node)
        else:
            raise AssertionError(f"a block's graph holds a {node.op} node: {node.format_node()}")
    lowering.graph.lint()
    module = fx.GraphModule(torch.nn.Module(), lowering.graph)
    return LoweredBlock(module, sharding, tuple(lowering.fallbacks))


@dataclass(slots=True)
class _Lowering:
    """The program under construction."""

    block: Block
    sharding: BlockSharding
    graph: fx.Graph = field(default_factory=fx.Graph)
    values: dict[fx.Node, fx.Node] = field(default_factory=dict)
    placed: dict[fx.Node, Placed] = field(default_factory=dict)
    converted: dict[tuple[fx.Node, Placement, bool], fx.Node] = field(default_factory=dict)
    fallbacks: list[str] = field(default_factory=list)
    axis: fx.Node = field(init=False)
    fake_axis: FakeAxis = field(init=False)
    gradients: frozenset[str] = field(init=False)
    pinned: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.axis = self.graph.placeholder("axis")
        self.fake_axis = FakeAxis(self.sharding.degree)
        self.axis.meta["val"] = None
        self.gradients = nodes_with_gradient(self.block)
        self.pinned = pinned_nodes(self.block.graph)

    def add_placeholder(self, node: fx.Node) -> None:
        placement = self.sharding.placement_of(node.name)
        new = self.graph.placeholder(node.name)
        new.meta.update(node.meta)
        value = node.meta["val"]
        new.meta["val"] = value.new_empty(local_shape(tuple(value.shape), placement, self.sharding.degree))
        self.values[node], self.placed[node] = new, placement
        if node.name in self.pinned and placement != REPLICATE:
            # Written in place later: from here on, everyone reads the same whole tensor.
            whole = self.convert(node, REPLICATE, False, node)
            self.values[node], self.placed[node] = whole, REPLICATE

    def add_call(self, node: fx.Node) -> None:
        rule = self.sharding.rules[node.name]
        arguments = tensor_arguments(node)
        wanted = iter(rule.inputs)
        degree = self.sharding.degree

        def local(argument: fx.Node) -> fx.Node:
            if argument not in self.values:
                raise AssertionError(f"{node} reads {argument}, which is not in the block")
            placement = next(wanted)
            partial = not rule.is_replicated and argument.name in self.gradients and placement == REPLICATE
            return self.convert(argument, placement, partial, node)

        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), local)
        literals = local_literals(node, rule, degree) if degree > 1 else {}
        args, kwargs = _with_literals(node, list(args), dict(kwargs), literals)
        target: Callable[..., Any] = node.target  # type: ignore[assignment]
        if rule.local is not None:
            replaced = (target,) if rule.local in _WRAPPERS else ()
            target = getattr(local_operators, rule.local)
            args = (self.axis, *replaced, *args)
        new = self.graph.call_function(target, tuple(args), kwargs)
        _copy_meta(node, new)
        new.meta["val"] = node.meta["val"] if rule.is_replicated else self.fake_value(new)
        new.meta["collectives"] = transfers_inside(node, rule)
        self.values[node], self.placed[node] = new, value_placement(node, rule)
        if degree > 1 and arguments and self.is_fallback(node):
            self.fallbacks.append(node.meta.get("operator_key", node.name))

    def is_fallback(self, node: fx.Node) -> bool:
        """Whether the node runs replicated for lack of a rule; single numbers (counters) do not count."""
        value = node.meta["val"]
        if isinstance(value, torch.Tensor) and value.numel() <= 1:
            return False
        return node.name in self.pinned or not has_rules(node.target)

    def add_output(self, node: fx.Node) -> None:
        wanted = iter(self.sharding.outputs)

        def local(value: fx.Node) -> fx.Node:
            return self.convert(value, next(wanted), False, value)

        results = fx.map_arg(node.args[0], local)
        new = self.graph.output(results)
        new.meta["val"] = fx.map_arg(results, lambda n: n.meta["val"])

    def convert(self, value: fx.Node, wanted: Placement, partial: bool, consumer: fx.Node) -> fx.Node:
        """The value as ``wanted``, through as few new nodes as were not made before."""
        source = self.placed[value]
        if isinstance(source, tuple):
            return self.values[value]  # a tuple is only ever taken apart
        key = (value, wanted, partial)
        if key not in self.converted:
            current = self.values[value]
            steps = conversion(source, wanted, partial)
            if len(steps) == 2:
                whole = self.converted.setdefault(
                    (value, REPLICATE, False), self.add_conversion(steps[0], current, value, consumer)
                )
                current, steps = whole, steps[1:]
            for step in steps:
                current = self.add_conversion(step, current, value, consumer)
            self.converted[key] = current
        return self.converted[key]

    def add_conversion(self, step: Collective, local: fx.Node, value: fx.Node, consumer: fx.Node) -> fx.Node:
        new = self.graph.call_function(
            getattr(collectives, step.function), (self.axis, local, *step.arguments)
        )
        # What is done to a parameter belongs to the module that uses it.
        _copy_meta(consumer if value.op == "placeholder" else value, new)
        new.meta.pop("operator_key", None)
        new.meta["val"] = self.fake_value(new)
        new.meta["lowered_from"] = value.name
        size = whole_bytes(value)
        new.meta["collectives"] = tuple(
            Transfer(
                kind, size // self.sharding.degree if kind is CollectiveKind.ALL_TO_ALL else size, backward
            )
            for kind, backward in ((step.forward, False), (step.backward, True))
            if kind is not None and (not backward or value.name in self.gradients)
        )
        return new

    def fake_value(self, node: fx.Node) -> Any:
        """Result of a new node on fake tensors of local shape."""

        def fake(argument: fx.Node) -> Any:
            return self.fake_axis if argument is self.axis else argument.meta["val"]

        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), fake)
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]


def _with_literals(
    node: fx.Node, args: list[Any], kwargs: dict[str, Any], literals: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    names = [a.name for a in node.target._schema.arguments] if literals else []  # type: ignore[union-attr]
    for name, value in literals.items():
        position = names.index(name)
        if position < len(args):
            args[position] = value
        else:
            kwargs[name] = value
    return tuple(args), kwargs


def _copy_meta(source: fx.Node, target: fx.Node) -> None:
    target.meta.update({key: source.meta[key] for key in _COPIED_META if key in source.meta})


def transfers_inside(node: fx.Node, rule: Rule) -> tuple[Transfer, ...]:
    """Collectives that a local operator runs itself."""
    if rule.local == "cross_entropy_vocab":
        logits = tensor_arguments(node)[0].meta["val"]
        tokens = logits.numel() // logits.shape[1]
        one = Transfer(CollectiveKind.ALL_REDUCE, tokens * max(logits.element_size(), 4), False)
        return (one, one, one)
    if rule.local in ("cross_entropy_tokens", "nll_tokens"):
        return (Transfer(CollectiveKind.ALL_REDUCE, 8, False),)
    return ()
