"""One deterministic choice of a rule for every operator of a block, from parameters and boundaries.

Each operator in order takes the rule with the least redistribution: what its operands cost to convert,
forward and backward (a conversion that an earlier operator made is free), and the reduction that a partial
result leaves pending. Ties prefer a resolved result, then to resolve partial sums to the placement of the
block's output, then fewer conversions, then sharded work where an operand is sharded and replicated work
elsewhere, then the order of the rule table. A sharded parameter is used as it is placed unless no rule can.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import fx

from autopar.capture.model_graph import Block, InputKind
from autopar.errors import UsageError
from autopar.sharding.block_facts import BlockFacts
from autopar.sharding.placement import PARTIAL, REPLICATE, Partial, Placement, Shard
from autopar.sharding.redistribution import conversion_units
from autopar.sharding.rule import Rule, find_rule, replicated
from autopar.sharding.rules.operator import tensor_arguments

# What a node's value is placed as: one placement, or for tuples one for each element.
Placed = Placement | tuple[Placement, ...]
_NOTHING: frozenset[tuple[Placement, bool]] = frozenset()


@dataclass(frozen=True, slots=True)
class BlockSharding:
    """How a block runs on the tensor axis.

    Attributes:
        degree: size of the tensor axis.
        parameters: placement of every parameter placeholder of the block.
        inputs: placement of every other placeholder: activations, batch entries, buffers, constants. A
            buffer that is not replicated arrives as a local shard, like a parameter.
        outputs: placement of every value that the block returns.
        rules: rule of every ``call_function`` node, by name.
    """

    degree: int
    parameters: Mapping[str, Placement]
    inputs: Mapping[str, Placement]
    outputs: tuple[Placement, ...]
    rules: Mapping[str, Rule]

    def placement_of(self, placeholder: str) -> Placement:
        """Placement in which a placeholder's value arrives."""
        return self.parameters.get(placeholder, self.inputs.get(placeholder, REPLICATE))


def propagate(
    block: Block,
    degree: int,
    parameters: Mapping[str, Placement],
    inputs: Mapping[str, Placement],
    outputs: tuple[Placement, ...],
    overrides: Mapping[str, str] | None = None,
    facts: BlockFacts | None = None,
) -> BlockSharding:
    """Chooses a rule for every operator of ``block``.

    Args:
        block: the block.
        degree: size of the tensor axis; 1 gives a sharding in which everything is replicated.
        parameters: placement by canonical parameter name, and by buffer name for buffers that are sharded
            with their module; absent means replicated.
        inputs: placement by global value name of the activations that the block reads; absent means
            replicated.
        outputs: placement of every value that the block returns.
        overrides: rule text by operator key; it wins over the least redistribution.
        facts: about the block, if the caller has them.

    Raises:
        UsageError: an override names a rule that its operator does not have.
    """
    arriving = input_placements(block, degree, parameters, inputs)
    kinds = {item.placeholder: item.kind for item in block.inputs}
    own = {name: p for name, p in arriving.items() if kinds[name] is InputKind.PARAMETER}
    other = {name: p for name, p in arriving.items() if kinds[name] is not InputKind.PARAMETER}
    calls = [node for node in block.graph.nodes if node.op == "call_function"]
    if degree == 1:
        rules = {node.name: replicated(len(tensor_arguments(node))) for node in calls}
        return BlockSharding(1, own, other, (REPLICATE,) * len(block.outputs), rules)
    state = _State(block, degree, arriving, outputs, facts or BlockFacts(block))
    fused = frozenset(p.blocks for p in arriving.values() if isinstance(p, Shard)) - {1}
    rules = {}
    for node in calls:
        text = (overrides or {}).get(node.meta.get("operator_key", ""))
        candidates = state.candidates(node, fused)
        if text is not None:
            rules[node.name] = _overridden(node, candidates, text)
        else:
            rules[node.name] = state.cheapest(node, candidates, fused)
        state.place(node, rules[node.name])
    return BlockSharding(degree, own, other, outputs, rules)


def input_placements(
    block: Block, degree: int, parameters: Mapping[str, Placement], inputs: Mapping[str, Placement]
) -> dict[str, Placement]:
    """Placement in which every placeholder of ``block`` arrives; arguments as for ``propagate``."""
    if degree == 1:
        return dict.fromkeys((item.placeholder for item in block.inputs), REPLICATE)
    of_state = (InputKind.PARAMETER, InputKind.BUFFER)
    return {
        item.placeholder: (parameters if item.kind in of_state else inputs).get(item.source, REPLICATE)
        for item in block.inputs
    }


def _overridden(node: fx.Node, candidates: tuple[Rule, ...], text: str) -> Rule:
    rule = find_rule(text, candidates)
    if rule is None:
        key = node.meta.get("operator_key", node.name)
        raise UsageError(
            f"operator '{key}' cannot run as '{text}'; its rules are: "
            + "; ".join(str(c) for c in candidates)
        )
    return rule


@dataclass(slots=True)
class _State:
    """Placements of the values computed so far, and the conversions already made for them."""

    block: Block
    degree: int
    inputs: Mapping[str, Placement]
    outputs: tuple[Placement, ...]
    facts: BlockFacts
    placed: dict[fx.Node, Placed] = field(default_factory=dict)
    converted: dict[fx.Node, frozenset[tuple[Placement, bool]]] = field(default_factory=dict)
    pinned: frozenset[str] = field(init=False)
    sharded_parameters: frozenset[str] = field(init=False)
    preferred: Placement = field(init=False)

    def __post_init__(self) -> None:
        self.pinned = self.facts.pinned
        parameters = {i.placeholder for i in self.block.inputs if i.kind == InputKind.PARAMETER}
        self.sharded_parameters = frozenset(n for n in parameters if isinstance(self.inputs.get(n), Shard))
        self.preferred = next((p for p in self.outputs if isinstance(p, Shard)), REPLICATE)
        for node in self.block.graph.nodes:
            if node.op == "placeholder":
                pinned = node.name in self.pinned
                self.placed[node] = REPLICATE if pinned else self.inputs.get(node.name, REPLICATE)
            elif node.op == "get_attr":
                self.placed[node] = REPLICATE

    def placement(self, node: fx.Node) -> Placement:
        placed = self.placed[node]
        return placed[0] if isinstance(placed, tuple) else placed

    def blocks_of(self, node: fx.Node) -> frozenset[int]:
        placements = (self.placement(a) for a in self.facts.arguments[node])
        return frozenset(p.blocks for p in placements if isinstance(p, Shard)) - {1}

    def place(self, node: fx.Node, rule: Rule) -> None:
        self.placed[node] = value_placement(node, rule)
        for argument, wanted in zip(self.facts.arguments[node], rule.inputs, strict=True):
            made = wanted, self.facts.is_gradient_partial(argument, rule, wanted)
            self.converted[argument] = self.converted.get(argument, _NOTHING) | {made}

    def candidates(self, node: fx.Node, fused: frozenset[int]) -> tuple[Rule, ...]:
        """Rules that the node may take, given how its arguments are placed."""
        if node.target is operator.getitem:
            return (element_rule(node, self.placed[node.args[0]]),)  # type: ignore[index]
        rules = self.facts.rules(node, self.degree, fused | self.blocks_of(node))
        written = self.facts.statistics[node]
        if not written:
            return rules
        arguments = self.facts.arguments[node]
        usable = tuple(rule for rule in rules if self._keeps(arguments, rule, written))
        assert usable, f"no rule of {node} leaves its running statistics where they are"
        return usable

    def cheapest(self, node: fx.Node, candidates: tuple[Rule, ...], fused: frozenset[int]) -> Rule:
        if len(candidates) == 1:
            return candidates[0]
        arguments = self.facts.arguments[node]
        sources = tuple(self.placement(argument) for argument in arguments)
        # All that the choice depends on; propagations of one block mostly differ elsewhere.
        key = (
            node,
            self.degree,
            fused,
            sources,
            tuple(argument.name in self.sharded_parameters for argument in arguments),
            tuple(self.converted.get(argument, _NOTHING) for argument in arguments),
            self.preferred,
        )
        known = self.facts.chosen.get(key)
        if known is None:
            keeping = [rule for rule in candidates if self._keeps(arguments, rule, self.sharded_parameters)]
            known = min(keeping or candidates, key=lambda rule: self._rank(node, arguments, sources, rule))
            self.facts.chosen[key] = known
        return known

    def _keeps(self, arguments: tuple[fx.Node, ...], rule: Rule, names: frozenset[str]) -> bool:
        return not names or all(
            argument.name not in names or self.placed[argument] == wanted
            for argument, wanted in zip(arguments, rule.inputs, strict=True)
        )

    def _rank(
        self, node: fx.Node, arguments: tuple[fx.Node, ...], sources: Sequence[Placement], rule: Rule
    ) -> tuple[int, bool, bool, int, bool]:
        total = 0
        resolves_elsewhere = False
        num_conversions = 0
        facts = self.facts
        for argument, source, wanted in zip(arguments, sources, rule.inputs, strict=True):
            partial = facts.is_gradient_partial(argument, rule, wanted)
            num_conversions += source != wanted
            if (wanted, partial) not in self.converted.get(argument, _NOTHING):
                gradient = argument.name in facts.gradients
                units = conversion_units(source, wanted, partial, self.degree, gradient=gradient)
                total += units * facts.num_bytes[argument]
            if isinstance(source, Partial) and wanted != PARTIAL:
                resolves_elsewhere |= wanted != self.preferred
        pending = rule.output == PARTIAL
        if pending:
            units = conversion_units(PARTIAL, REPLICATE, False, self.degree, gradient=True)
            total += units * facts.num_bytes[node]
        any_sharded = any(isinstance(source, Shard) for source in sources)
        return (total, pending, resolves_elsewhere, num_conversions, rule.is_replicated == any_sharded)


def element_rule(node: fx.Node, placed: Placed) -> Rule:
    """The rule of a ``getitem``: the element keeps the placement that the operator gave it."""
    placement = placed[node.args[1]] if isinstance(placed, tuple) else placed  # type: ignore[index]
    assert isinstance(placement, Placement)
    return Rule((placement,), placement)


def value_placement(node: fx.Node, rule: Rule) -> Placed:
    """Placement of the value of a call under ``rule``."""
    value = node.meta.get("val")
    if isinstance(value, (tuple, list)):
        return tuple(rule.element(index) for index in range(len(value)))
    return rule.output
