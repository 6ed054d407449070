"""The walk over a block under a sharding: which local value every call reads, and what is converted before.

The lowering walks to build a program; the cost model walks to add up what that program will cost, without
building it. Both take the same steps, for the steps are taken here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

from torch import fx

from autopar.capture.model_graph import Block
from autopar.sharding.block_facts import BlockFacts
from autopar.sharding.placement import PARTIAL, REPLICATE, Placement
from autopar.sharding.propagation import BlockSharding, Placed, value_placement
from autopar.sharding.redistribution import Collective, conversion, kept_as_shard
from autopar.sharding.rule import Rule

Value = TypeVar("Value")


class LocalWalk(ABC, Generic[Value]):
    """Visits the nodes of a block in order, with one rank's values at hand.

    Attributes:
        values: local value of every node so far, as its sharding places it.
        placed: the placement it has.
        gradients: names of the block's nodes that may require a gradient.
    """

    def __init__(self, block: Block, sharding: BlockSharding, facts: BlockFacts | None = None) -> None:
        self.block = block
        self.sharding = sharding
        self.degree = sharding.degree
        self.facts = facts or BlockFacts(block)
        self.gradients, self.pinned = self.facts.gradients, self.facts.pinned
        self.values: dict[fx.Node, Value] = {}
        self.placed: dict[fx.Node, Placed] = {}
        self._converted: dict[tuple[fx.Node, Placement, bool], Value] = {}

    def walk(self) -> None:
        """Visits every node."""
        for node in self.block.graph.nodes:
            if node.op == "placeholder":
                self._enter(node)
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                wanted = iter(self.sharding.outputs)
                results: Sequence[fx.Node] = node.args[0]
                self.leave(node, [self._convert(value, next(wanted), False, value) for value in results])
            else:
                raise AssertionError(f"a block's graph holds a {node.op} node: {node.format_node()}")

    @abstractmethod
    def enter(self, node: fx.Node, placement: Placement) -> Value:
        """The local value of a placeholder."""

    @abstractmethod
    def call(self, node: fx.Node, rule: Rule, arguments: Sequence[Value]) -> Value:
        """The local result of a call.

        Args:
            arguments: one local value per tensor argument, in flat order.
        """

    @abstractmethod
    def convert(
        self, step: Collective, after: Placement, local: Value, value: fx.Node, consumer: fx.Node
    ) -> Value:
        """One step of a conversion of ``value``, of which ``local`` is at hand."""

    @abstractmethod
    def leave(self, node: fx.Node, results: Sequence[Value]) -> None:
        """The local results of the block."""

    def _enter(self, node: fx.Node) -> None:
        placement = self.sharding.placement_of(node.name)
        self.values[node], self.placed[node] = self.enter(node, placement), placement
        if node.name in self.pinned and placement != REPLICATE:
            # Written in place later: from here on, everyone reads the same whole tensor.
            whole = self._convert(node, REPLICATE, False, node)
            self.values[node], self.placed[node] = whole, REPLICATE

    def _call(self, node: fx.Node) -> None:
        rule = self.sharding.rules[node.name]
        arguments = []
        for argument, placement in zip(self.facts.arguments[node], rule.inputs, strict=True):
            if argument not in self.values:
                raise AssertionError(f"{node} reads {argument}, which is not in the block")
            partial = self.facts.is_gradient_partial(argument, rule, placement)
            arguments.append(self._convert(argument, placement, partial, node))
        self.values[node] = self.call(node, rule, arguments)
        self.placed[node] = value_placement(node, rule)

    def _convert(self, value: fx.Node, wanted: Placement, partial: bool, consumer: fx.Node) -> Value:
        """The value as ``wanted``, through as few new steps as were not taken before."""
        source = self.placed[value]
        if isinstance(source, tuple):
            return self.values[value]  # a tuple is only ever taken apart
        key = (value, wanted, partial)
        if key not in self._converted:
            current = self.values[value]
            steps = conversion(source, wanted, partial)
            if value.name in self.facts.product_inputs:
                steps = tuple(map(kept_as_shard, steps))
            if len(steps) == 2:
                whole = (value, REPLICATE, False)
                if whole not in self._converted:
                    self._converted[whole] = self.convert(steps[0], REPLICATE, current, value, consumer)
                current, steps = self._converted[whole], steps[1:]
            for step in steps:
                current = self.convert(step, _after(step, wanted), current, value, consumer)
            self._converted[key] = current
        return self._converted[key]


def _after(step: Collective, wanted: Placement) -> Placement:
    return PARTIAL if step.function in ("to_partial", "pad_to_partial") else wanted
