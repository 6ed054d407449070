"""What every pass over a block asks of its graph, found out once and handed from pass to pass."""

from __future__ import annotations

from torch import fx

from autopar.capture.model_graph import Block
from autopar.sharding.aliasing import hidden_writes, pinned_nodes
from autopar.sharding.gradients import nodes_with_gradient
from autopar.sharding.placement import REPLICATE
from autopar.sharding.product_inputs import product_inputs
from autopar.sharding.rule import Rule, replicated
from autopar.sharding.rules.operator import tensor_arguments, whole_bytes
from autopar.sharding.rules.table import strategies


class BlockFacts:
    """Facts about one block that depend on its graph and the kinds of its inputs alone.

    Attributes:
        gradients: names of the nodes that may require a gradient.
        pinned: names of the nodes that share storage with a tensor that is written to in place.
        arguments: tensor arguments of every node, in flat order.
        num_bytes: of the unsharded value of every node.
        statistics: per node, the running statistics that it updates.
        product_inputs: names of the values that only products with weights read.
        chosen: rules that propagations chose, by what the choice depended on.
    """

    def __init__(self, block: Block) -> None:
        self.gradients = nodes_with_gradient(block)
        self.pinned = pinned_nodes(block.graph)
        self.product_inputs = product_inputs(block.graph, self.gradients, self.pinned)
        self.arguments: dict[fx.Node, tuple[fx.Node, ...]] = {
            node: tensor_arguments(node) for node in block.graph.nodes
        }
        self.num_bytes = {node: whole_bytes(node) for node in block.graph.nodes}
        self.statistics = {node: frozenset(n.name for n in hidden_writes(node)) for node in block.graph.nodes}
        self.chosen: dict[object, Rule] = {}
        self._rules: dict[tuple[fx.Node, int, frozenset[int]], tuple[Rule, ...]] = {}

    def rules(self, node: fx.Node, degree: int, fused: frozenset[int]) -> tuple[Rule, ...]:
        """Rules of one call; the replicated one alone where its value shares storage with a mutated
        tensor.
        """
        if node.name in self.pinned:
            return (replicated(len(self.arguments[node])),)
        key = (node, degree, fused)
        if key not in self._rules:
            self._rules[key] = strategies(node, degree, fused)
        return self._rules[key]

    def is_gradient_partial(self, argument: fx.Node, rule: Rule, wanted: object) -> bool:
        """Whether a call that reads ``argument`` as ``wanted`` returns only a summand of its gradient."""
        return wanted == REPLICATE and not rule.is_replicated and argument.name in self.gradients
