"""The ways of running one block: the optimum for every boundary and price of memory, lowered and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autopar.capture.model_graph import Block, InputKind, ModelGraph
from autopar.cost.blocks import Readings, block_choice
from autopar.cost.choice import BlockChoice
from autopar.cost.operator_traffic import COPY_IF_NEEDED
from autopar.cost.operators import node_seconds, operator_name
from autopar.hardware.cluster import Cluster
from autopar.hardware.device import Device
from autopar.plan.decisions import Recompute
from autopar.planner.realise import Realiser
from autopar.planner.table_solver import BlockPins, TableSolver
from autopar.sharding.gradients import nodes_with_gradient
from autopar.sharding.propagation import BlockSharding, propagate


@dataclass(frozen=True, slots=True)
class Workbench:
    """What costing any block needs.

    Attributes:
        readings: cache of what lowered blocks cost.
        frozen: canonical names of parameters without gradient.
        tensor_stride: distance in ranks between neighbours on the tensor axis.
    """

    cluster: Cluster
    readings: Readings
    frozen: frozenset[str]
    tensor_stride: int = 1


def whole_choices(
    graph: ModelGraph, block: Block, recompute: Sequence[Recompute], bench: Workbench
) -> tuple[BlockChoice, ...]:
    """The ways of running a block on a tensor axis of one rank."""
    sharding = propagate(block, 1, {}, {}, ())
    return _undominated(
        [_choice(graph, block, sharding, ("replicate",) * 2, {}, word, bench) for word in recompute]
    )


def whole_seconds(block: Block, device: Device, frozen: frozenset[str] = frozenset()) -> float:
    """Least seconds of a block on one rank, forward and backward: its operators, as if nothing that may lie
    right already were copied.

    Args:
        frozen: canonical names of parameters without gradient.
    """
    if measured := device.blocks.get(block.class_key):
        return measured.forward_s + measured.backward_s
    gradients = nodes_with_gradient(block, frozen)
    costs = [
        node_seconds(node, gradients, device)
        for node in block.graph.nodes
        if node.op == "call_function" and operator_name(node.target) not in COPY_IF_NEEDED
    ]
    return sum(cost.forward_s + cost.backward_s for cost in costs)


def sharded_choices(
    graph: ModelGraph,
    block: Block,
    solver: TableSolver,
    realiser: Realiser,
    pairs: Sequence[tuple[str, str]],
    pins: BlockPins,
    bench: Workbench,
    *,
    thorough: bool = False,
) -> tuple[BlockChoice, ...]:
    """The ways of running a block on several ranks that no other way beats in everything.

    Args:
        pairs: input and output words to consider.
        thorough: whether what is near the optimum is considered as well.
    """
    found: list[BlockChoice] = []
    seen: set[tuple[str, str, str]] = set()
    for words in pairs:
        indices = solver.table.word_indices(words)
        solutions = solver.solutions(words, pins)
        if thorough:
            solutions += solver.near_optima(words, pins)
        for price, solution in solutions:
            realised = realiser.realise(solution, price, words, indices, pins.overrides)
            key = (*words, realised.signature)
            if key in seen:
                continue
            seen.add(key)
            for recompute in pins.recompute:
                way = (realised.sharding, words, realised.overrides, recompute)
                found.append(_choice(graph, block, *way, bench))
    return _undominated(found)


def _choice(
    graph: ModelGraph,
    block: Block,
    sharding: BlockSharding,
    words: tuple[str, str],
    overrides: Mapping[str, str],
    recompute: Recompute,
    bench: Workbench,
) -> BlockChoice:
    return block_choice(
        block,
        sharding,
        recompute,
        bench.cluster,
        graph.micro_batch,
        input_word=words[0],
        output_word=words[1],
        overrides=overrides,
        frozen=bench.frozen,
        readings=bench.readings,
        tensor_stride=bench.tensor_stride,
    )


def _undominated(found: Sequence[BlockChoice]) -> tuple[BlockChoice, ...]:
    """The choices that no other beats in everything; of equal ones the first."""
    kept: list[BlockChoice] = []
    for choice in found:
        if not any(_dominates(other, choice) for other in kept):
            kept = [other for other in kept if not _dominates(choice, other)]
            kept.append(choice)
    return tuple(kept)


def _dominates(better: BlockChoice, worse: BlockChoice) -> bool:
    """Whether one choice is at least as good in everything."""
    if (better.input_word, better.output_word) != (worse.input_word, worse.output_word):
        return False
    return all(a <= b for a, b in zip(_measures(better), _measures(worse), strict=True))


def _measures(choice: BlockChoice) -> tuple[float, ...]:
    return (
        choice.forward_s,
        choice.backward_s,
        float(choice.saved_bytes),
        float(choice.transient_bytes),
        float(sum(share.num_elements for share in choice.parameters)),
    )


def operator_keys(block: Block) -> tuple[str, ...]:
    """Keys of the calls of a block, in order."""
    return tuple(call.operator_key for call in block.calls)


def parameter_names(block: Block) -> tuple[str, ...]:
    """Canonical names of the parameters of a block, in placeholder order."""
    return tuple(item.source for item in block.inputs if item.kind is InputKind.PARAMETER)
