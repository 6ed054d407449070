"""One module of a plan: how its operators are placed, what they send, how long they take, what they keep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from autopar.capture.model_graph import InputKind
from autopar.cost.blocks import Readings, frozen_parameters
from autopar.cost.call_facts import CallFacts
from autopar.cost.choice import BlockChoice
from autopar.cost.local_run import LocalRun, LocalValue, Timed
from autopar.cost.operators import operator_name
from autopar.cost.parameter_state import parameter_bytes
from autopar.cost.training import training_of
from autopar.errors import UsageError, closest_match
from autopar.lower.block import Transfer
from autopar.lower.resolve import BlockDecision
from autopar.plan.patterns import matches
from autopar.planner.explain import Costing
from autopar.report.module import CollectiveCall, OperatorUse, ParameterUse
from autopar.sharding.placement import Placement
from autopar.sharding.redistribution import Collective
from autopar.sharding.rule import Rule


@dataclass(frozen=True, slots=True)
class ModuleUse:
    """A module, or a block of the chain, on one rank for one micro-batch.

    Attributes:
        blocks: that it runs in, with their stages.
        input_word, output_word: what flows into the first of these blocks and out of the last.
        whole: the blocks' costs, if the module is all that they hold; else empty.
    """

    name: str
    blocks: tuple[tuple[str, int], ...]
    input_word: str
    output_word: str
    recompute: tuple[str, ...]
    parameters: tuple[ParameterUse, ...]
    operators: tuple[OperatorUse, ...]
    whole: tuple[BlockChoice, ...]


def explain_module(costing: Costing, name: str) -> ModuleUse:
    """How a module runs.

    Args:
        name: of a module, a block or a parameter; ``*`` and ranges stand for numbers, as in plans.

    Raises:
        UsageError: the model has no such module; offers the closest.
    """
    resolved, found = costing.resolved, []
    choices = [choice for stage in costing.layout.stages for choice in stage]
    for decision, choice in zip(resolved.blocks, choices, strict=True):
        is_whole = matches(name, decision.block.name)
        nodes = [n for n in _calls(decision) if is_whole or matches(name, n.meta.get("module", ""))]
        if nodes:
            found.append((decision, choice, nodes))
    parameters = tuple(_parameters(costing, name, [decision for decision, _, _ in found]))
    if not found and not parameters:
        raise _unknown(costing, name)
    decisions = [decision for decision, _, _ in found] or _readers(costing, parameters)
    return ModuleUse(
        name=name,
        blocks=tuple((d.block.name, d.stage) for d in decisions),
        input_word=decisions[0].input_word if decisions else "",
        output_word=decisions[-1].output_word if decisions else "",
        recompute=tuple(str(d.recompute) for d in decisions),
        parameters=parameters,
        operators=tuple(use for d, _, nodes in found for use in _operators(costing, d, nodes)),
        whole=tuple(c for d, c, nodes in found if len(nodes) == sum(1 for _ in _calls(d))),
    )


def _readers(costing: Costing, parameters: Sequence[ParameterUse]) -> list[BlockDecision]:
    """The blocks that read some parameters."""
    names = {parameter.name for parameter in parameters}
    return [
        decision
        for decision in costing.resolved.blocks
        if any(item.source in names for item in decision.block.inputs)
    ]


def _calls(decision: BlockDecision) -> Iterator[fx.Node]:
    return (node for node in decision.block.graph.nodes if node.op == "call_function")


def _unknown(costing: Costing, name: str) -> UsageError:
    graph = costing.resolved.graph
    known = {block.name for block in graph.blocks} | set(graph.parameters)
    for decision in costing.resolved.blocks:
        known |= {node.meta.get("module", "") for node in _calls(decision)}
    hint = closest_match(name, sorted(known - {""})) or "; name one as the plan does, e.g. 'blocks.0'"
    return UsageError(f"--node {name}: the model has no such module, block or parameter{hint}")


class _NotingRun(LocalRun):
    """A run that notes on whose account every call and every conversion is."""

    def __init__(self, costing: Costing, decision: BlockDecision, readings: Readings) -> None:
        frozen = frozen_parameters(costing.resolved.graph)
        facts: CallFacts = readings.facts_of(decision.block, frozen)
        super().__init__(decision.block, decision.sharding, facts, costing.cluster.device)
        self.noted: dict[fx.Node, list[Timed]] = {}
        self.made_by: dict[fx.Node, LocalValue] = {}
        self.converted: list[tuple[fx.Node, fx.Node, list[Timed]]] = []

    def call(self, node: fx.Node, rule: Rule, arguments: Sequence[LocalValue]) -> LocalValue:
        count = len(self.calls)
        result = super().call(node, rule, arguments)
        self.noted.setdefault(node, []).extend(self.calls[count:])
        self.made_by[node] = result
        return result

    def convert(
        self, step: Collective, after: Placement, local: LocalValue, value: fx.Node, consumer: fx.Node
    ) -> LocalValue:
        count = len(self.calls)
        result = super().convert(step, after, local, value, consumer)
        self.converted.append((value, consumer, self.calls[count:]))
        return result


def _operators(costing: Costing, decision: BlockDecision, nodes: Sequence[fx.Node]) -> Iterator[OperatorUse]:
    run = _NotingRun(costing, decision, Readings(costing.cluster))
    run.walk()
    within = set(nodes)
    for value, consumer, timed in run.converted:
        # On the account of who reads, or of who made what is read outside of the module.
        run.noted.setdefault(consumer if consumer in within else value, []).extend(timed)
    for node in nodes:
        noted = run.noted.get(node, [])
        yield OperatorUse(
            key=node.meta.get("operator_key", node.name),
            operator=operator_name(node.target),
            rule=str(decision.sharding.rules[node.name]),
            output_bytes=run.made_by[node].num_bytes,
            forward_s=sum(timed.cost.forward_s for timed in noted),
            backward_s=sum(timed.cost.backward_s for timed in noted),
            collectives=tuple(_collective(costing, t) for timed in noted for t in timed.transfers),
        )


def _collective(costing: Costing, transfer: Transfer) -> CollectiveCall:
    layout = costing.layout
    seconds = costing.cluster.collective_s(
        transfer.kind, transfer.num_bytes, layout.tensor, layout.stride("tensor")
    )
    return CollectiveCall(str(transfer.kind.value), transfer.num_bytes, seconds, transfer.backward)


def _parameters(costing: Costing, name: str, decisions: Sequence[BlockDecision]) -> Iterator[ParameterUse]:
    layout, graph = costing.layout, costing.resolved.graph
    training = training_of(layout, costing.cluster)
    wanted = {
        item.source
        for decision in decisions
        if matches(name, decision.block.name)
        for item in decision.block.inputs
        if item.kind is InputKind.PARAMETER
    }
    shares = {
        item.source: (share, decision.stage)
        for decision, choice in zip(
            costing.resolved.blocks, (c for stage in layout.stages for c in stage), strict=True
        )
        for item, share in zip(
            (i for i in decision.block.inputs if i.kind is InputKind.PARAMETER),
            choice.parameters,
            strict=True,
        )
    }
    for parameter, spec in graph.parameters.items():
        if parameter not in shares or not (
            parameter in wanted or any(matches(name, n) for n in (parameter, *spec.aliases))
        ):
            continue
        share, stage = shares[parameter]
        trainable, frozen = (share.num_elements, 0) if share.trainable else (0, share.num_elements)
        state = parameter_bytes(
            trainable,
            frozen,
            training.level(layout.zero[stage]),
            training.group,
            training.precision,
            training.optimizer,
        )
        yield ParameterUse(
            parameter, share.placement, tuple(spec.spec.shape), share.num_elements, state.total
        )
