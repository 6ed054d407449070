"""From a block to the table of the operator ILP: its strategies, what they want, and what they cost."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import fx

from autopar.capture.model_graph import Block, InputKind, ModelGraph, TensorSpec
from autopar.hardware.cluster import Cluster
from autopar.planner.operator_table import OperatorTable
from autopar.planner.strategy_costs import StrategyCosts
from autopar.sharding.aliasing import hidden_writes
from autopar.sharding.block_facts import BlockFacts
from autopar.sharding.boundary import block_boundary
from autopar.sharding.heads import num_heads
from autopar.sharding.placement import REPLICATE, Placement, Shard, parse_placement
from autopar.sharding.propagation import value_placement
from autopar.sharding.roles import Use
from autopar.sharding.rule import Rule
from autopar.solve.operator_problem import Cost, Demand, OperatorNode, OperatorProblem, Strategy

WORDS = ("replicate", "sequence", "batch")


def operator_table(
    graph: ModelGraph,
    block: Block,
    degree: int,
    cluster: Cluster,
    uses: Mapping[str, tuple[Use, ...]],
    pinned: Mapping[str, Placement] | None = None,
    tensor_stride: int = 1,
    facts: BlockFacts | None = None,
) -> OperatorTable:
    """The table of ``block`` for a tensor axis of ``degree`` ranks.

    Args:
        uses: of the model's parameters.
        pinned: placements that a constraint asks for, offered whatever is thought of them here.
        tensor_stride: distance in ranks between neighbours on the tensor axis.
        facts: about the block, if the caller has them.
    """
    facts = facts or BlockFacts(block)
    return _Builder(graph, block, degree, cluster, uses, pinned or {}, tensor_stride, facts).build()


class _Builder:
    def __init__(
        self,
        graph: ModelGraph,
        block: Block,
        degree: int,
        cluster: Cluster,
        uses: Mapping[str, tuple[Use, ...]],
        pinned: Mapping[str, Placement],
        stride: int,
        facts: BlockFacts,
    ) -> None:
        self._facts = facts
        self._uses = uses
        self._asked_for = pinned
        self._graph = graph
        self._block = block
        self._degree = degree
        self._costs = StrategyCosts(block, degree, cluster, stride, facts)
        self._gradients, self._pinned = facts.gradients, facts.pinned
        self._fused = frozenset(
            parts
            for item in block.inputs
            if item.kind is InputKind.PARAMETER
            for parts in (graph.parameters[item.source].fused_dims or {}).values()
        )
        self._sources = {item.placeholder: item for item in block.inputs}
        self._index: dict[fx.Node, int] = {}
        self._nodes: list[OperatorNode] = []
        self._rules: dict[int, tuple[Rule, ...]] = {}
        self._parameters: dict[str, tuple[int, tuple[Placement, ...]]] = {}
        self._weights: dict[str, str] = {}
        self._equal: dict[int, list[int]] = {}
        self._statistics = frozenset(
            value.name
            for node in block.graph.nodes
            if node.op == "call_function"
            for value in hidden_writes(node)
        )
        self._input_words = self._words(block.index - 1)
        self._output_words = self._words(block.index)

    def build(self) -> OperatorTable:
        inputs = []
        for node in self._block.graph.nodes:
            index = len(self._nodes)
            if node.op == "placeholder":
                strategies = self._placeholder(node, index)
                if self._sources[node.name].kind is InputKind.ACTIVATION:
                    inputs.append(index)
                operands: tuple[fx.Node, ...] = ()
            elif node.op == "output":
                operands = tuple(node.all_input_nodes)
                strategies = self._output(operands)
            elif node.op == "call_function":
                operands = self._facts.arguments[node]
                strategies = self._call(node, index)
            else:
                operands, strategies = (), (Strategy("replicate", ()),)
            self._index[node] = index
            self._nodes.append(
                OperatorNode(node.name, tuple(self._index[o] for o in operands), strategies, {})
            )
        self._add_conversions()
        return OperatorTable(
            OperatorProblem(tuple(self._nodes), tuple(tuple(group) for group in self._equal.values())),
            tuple(node.name for node in self._block.graph.nodes),
            self._rules,
            frozenset(i for n, i in self._index.items() if n.target is operator.getitem),
            self._parameters,
            self._used_placements(),
            self._weights,
            tuple(inputs),
            self._input_words,
            self._output_words,
        )

    def _words(self, producer: int) -> tuple[str, ...]:
        """Words under which anything that crosses the boundary after block ``producer`` is sharded."""
        if not 0 <= producer < len(self._graph.blocks) - 1:
            return ("replicate",)
        block = self._graph.blocks[producer]
        feeds_loss = producer == len(self._graph.blocks) - 2
        return tuple(
            word
            for word in (WORDS + self._last_dim_words(block) if feeds_loss else WORDS)
            if word == "replicate"
            or any(
                isinstance(p, Shard)
                for p in block_boundary(self._graph, block, "replicate", word, self._degree)[1]
            )
        )

    def _last_dim_words(self, block: Block) -> tuple[str, ...]:
        """``shard(d)`` of the last dim of what a block returns: logits by vocabulary, as losses take them."""
        ranks = (len(self._graph.values[n].shape) for n in block.outputs if n in self._graph.values)
        return tuple(dict.fromkeys(f"shard({rank - 1})" for rank in ranks if rank > 1))

    def _placeholder(self, node: fx.Node, index: int) -> tuple[Strategy, ...]:
        item = self._sources[node.name]
        if item.kind is InputKind.ACTIVATION:
            incoming = [
                block_boundary(self._graph, self._block, word, "replicate", self._degree)[0][item.source]
                for word in self._input_words
            ]
            return tuple(Strategy(str(placement), ()) for placement in incoming)
        if node.name in self._statistics and node.name not in self._pinned:
            return self._running_statistics(item.source, index)
        if item.kind is not InputKind.PARAMETER or node.name in self._pinned:
            return (Strategy("replicate", ()),)
        spec = self._graph.parameters[item.source]
        fused = spec.fused_dims or {}
        placements: list[Placement] = [REPLICATE]
        for dim, size in enumerate(spec.spec.shape):
            parts = fused.get(dim, 1)
            if size > 1 and size % (self._degree * parts) == 0 and self._splits_heads(node, dim, parts):
                placements.append(Shard(dim, parts))
        asked_for = self._asked_for.get(item.source)
        if asked_for is not None and asked_for not in placements:
            placements.append(asked_for)
        self._parameters[item.source] = (index, tuple(placements))
        elements = spec.spec.num_elements
        return tuple(Strategy(str(p), (), self._costs.parameter(elements, p)) for p in placements)

    def _splits_heads(self, node: fx.Node, dim: int, parts: int) -> bool:
        """Whether whole heads go to every rank, if the shard is one of heads: plans may not split a head."""
        for use in self._uses.get(self._sources[node.name].source, ()):
            heads = num_heads(use, parts) if use.role.dim_of("column") == dim else None
            if heads is not None and heads % self._degree:
                return False
        return True

    def _running_statistics(self, name: str, index: int) -> tuple[Strategy, ...]:
        """Buffers that an operator updates are placed as the weight of their module is."""
        weight = f"{name.rpartition('.')[0]}.weight"
        if weight not in self._parameters:
            return (Strategy("replicate", ()),)
        self._weights[name] = weight
        position, placements = self._parameters[weight]
        self._equal.setdefault(position, [position]).append(index)
        return tuple(Strategy(str(placement), ()) for placement in placements)

    def _output(self, operands: Sequence[fx.Node]) -> tuple[Strategy, ...]:
        results = self._block.graph.output_node().args[0]
        assert isinstance(results, (tuple, list))
        strategies = []
        for word in self._output_words:
            _, placements = block_boundary(self._graph, self._block, "replicate", word, self._degree)
            by_node = dict(zip(results, placements, strict=True))
            demands = tuple(Demand(str(by_node[operand])) for operand in operands)
            strategies.append(Strategy("replicate", demands))
        return tuple(strategies)

    def _call(self, node: fx.Node, index: int) -> tuple[Strategy, ...]:
        if node.target is operator.getitem:
            return self._element(node, index)
        arguments = self._facts.arguments[node]
        rules = self._facts.rules(node, self._degree, self._fused)
        self._rules[index] = rules
        return tuple(
            Strategy(
                _label(value_placement(node, rule)),
                tuple(
                    Demand(str(wanted), self._is_partial(argument, wanted, rule))
                    for argument, wanted in zip(arguments, rule.inputs, strict=True)
                ),
                self._costs.rule(node, rule),
            )
            for rule in rules
        )

    def _element(self, node: fx.Node, index: int) -> tuple[Strategy, ...]:
        """``getitem`` takes what the tuple's producer gave the element."""
        producer, position = node.args[0], node.args[1]
        assert isinstance(producer, fx.Node) and isinstance(position, int)
        labels = dict.fromkeys(s.output for s in self._nodes[self._index[producer]].strategies)
        placements = []
        for label in labels:
            placement = parse_placement(label.split(" | ")[position])
            assert placement is not None
            placements.append(placement)
        self._rules[index] = tuple(Rule((p,), p) for p in placements)
        return tuple(
            Strategy(str(p), (Demand(label),), self._costs.rule(node, Rule((p,), p)))
            for label, p in zip(labels, placements, strict=True)
        )

    def _is_partial(self, argument: fx.Node, wanted: Placement, rule: Rule) -> bool:
        return wanted == REPLICATE and not rule.is_replicated and argument.name in self._gradients

    def _add_conversions(self) -> None:
        demands: dict[int, dict[Demand, None]] = {}
        for node in self._nodes:
            for strategy in node.strategies:
                for operand, demand in zip(node.operands, strategy.demands, strict=True):
                    demands.setdefault(operand, {})[demand] = None
        by_index = {index: node for node, index in self._index.items()}
        parameters = {index for index, _ in self._parameters.values()} - self._at_odds()
        for index, wanted in demands.items():
            value = by_index[index].meta.get("val")
            if not isinstance(value, torch.Tensor) or by_index[index].name in self._statistics:
                continue
            node, spec = self._nodes[index], TensorSpec(tuple(value.shape), value.dtype)
            has_gradient = by_index[index].name in self._gradients
            keeps_shard = by_index[index].name in self._facts.product_inputs
            costs: dict[tuple[str, Demand], Cost] = {}
            for source in dict.fromkeys(s.output for s in node.strategies):
                if index in parameters and source != "replicate" and Demand(source) in wanted:
                    continue  # the propagation uses a sharded parameter as it is placed where any rule can
                for demand in wanted:
                    costs[source, demand] = self._costs.conversion(
                        spec, source, demand, has_gradient, keeps_shard
                    )
            self._nodes[index] = replace(node, conversions=costs)

    def _at_odds(self) -> set[int]:
        """Parameters of an operator that takes none of the shards asked for together: one is gathered."""
        parameters = {index: name for name, (index, _) in self._parameters.items()}
        found: set[int] = set()
        for index, rules in self._rules.items():
            operands = self._nodes[index].operands
            asked = {at: self._asked_for.get(parameters.get(one, "")) for at, one in enumerate(operands)}
            sharded = {at: str(placement) for at, placement in asked.items() if isinstance(placement, Shard)}
            if not any(all(str(rule.inputs[at]) == one for at, one in sharded.items()) for rule in rules):
                found.update(operands[at] for at in sharded)
        return found

    def _used_placements(self) -> dict[str, tuple[int, ...]]:
        wanted: dict[int, set[str]] = {}
        for node in self._nodes:
            for strategy in node.strategies:
                for operand, demand in zip(node.operands, strategy.demands, strict=True):
                    wanted.setdefault(operand, {"replicate"}).add(demand.placement)
        return {
            name: tuple(i for i, p in enumerate(placements) if str(p) in wanted.get(index, {"replicate"}))
            for name, (index, placements) in self._parameters.items()
        }


def _label(placed: Placement | tuple[Placement, ...]) -> str:
    return " | ".join(map(str, placed)) if isinstance(placed, tuple) else str(placed)
