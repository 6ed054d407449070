"""What each block is made of, by node names: decided once, the same for every micro-batch size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from autopar.capture.dataflow import Dataflow
from autopar.capture.model_graph import BlockInput, InputKind
from autopar.capture.segments import Chain

_ORDER = tuple(InputKind)


@dataclass(frozen=True, slots=True)
class BlockRecipe:
    """One block.

    Attributes:
        name: of the block.
        inputs: its placeholders, by kind, then in the order of the whole graph.
        operators: names of the nodes that it computes, in order; repeated ones occur in several blocks.
        outputs: names of the nodes that later blocks read.
    """

    name: str
    inputs: tuple[BlockInput, ...]
    operators: tuple[str, ...]
    outputs: tuple[str, ...]


def write_recipes(
    graph: fx.Graph, chain: Chain, flow: Dataflow, inputs: Mapping[str, BlockInput], loss: fx.Node
) -> tuple[BlockRecipe, ...]:
    """The recipes of a divided graph; ``inputs`` describes the placeholders of the whole graph by name."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    members: list[list[fx.Node]] = [[] for _ in chain.names]
    for node in graph.nodes:
        if node.name in chain.block_of:
            members[chain.block_of[node.name]].append(node)
    needed = [_needed(nodes, flow) for nodes in members]
    last_reader: dict[fx.Node, int] = {}
    for index, nodes in enumerate(needed):
        for node in nodes:
            last_reader[node] = index
    recipes = []
    for index, nodes in enumerate(members):
        last = index == len(members) - 1
        outputs = [loss] if last else [node for node in nodes if last_reader.get(node, index) > index]
        recipes.append(_recipe(chain.names[index], nodes, needed[index], outputs, flow, inputs, order))
    return tuple(recipes)


def _recipe(
    name: str,
    nodes: list[fx.Node],
    needed: list[fx.Node],
    outputs: list[fx.Node],
    flow: Dataflow,
    inputs: Mapping[str, BlockInput],
    order: Mapping[fx.Node, int],
) -> BlockRecipe:
    described: dict[fx.Node, BlockInput] = {}
    for node in needed:
        if node.op == "placeholder":
            described[node] = inputs[node.name]
        elif node not in flow.repeatable:
            described[node] = BlockInput(node.name, InputKind.ACTIVATION, node.name)
    placeholders = sorted(described, key=lambda n: (_ORDER.index(described[n].kind), order[n]))
    computed = [*nodes, *(node for node in needed if node not in described)]
    return BlockRecipe(
        name,
        tuple(described[node] for node in placeholders),
        tuple(node.name for node in sorted(computed, key=order.__getitem__)),
        tuple(node.name for node in outputs),
    )


def _needed(nodes: list[fx.Node], flow: Dataflow) -> list[fx.Node]:
    """What a block reads: placeholders, values of earlier blocks, and operators that it repeats for itself.

    In-place writers into a repeated value are repeated with it.
    """
    own = set(nodes)
    found: dict[fx.Node, None] = {}
    stack = [source for node in nodes for source in node.all_input_nodes]
    while stack:
        node = stack.pop()
        if node in found or node in own:
            continue
        found[node] = None
        if node in flow.repeatable:
            stack += node.all_input_nodes
            stack += flow.writers.get(flow.alias_group[node], ())
    return list(found)
