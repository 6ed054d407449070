"""Cutting a static graph into the self-contained graphs of its blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from autopar.capture.dataflow import Dataflow
from autopar.capture.model_graph import Block, BlockInput, InputKind, TensorSpec
from autopar.capture.segments import Chain

_ORDER = tuple(InputKind)


@dataclass(frozen=True, slots=True)
class Extraction:
    """The blocks of a static graph, without their classes, and the values that cross their boundaries."""

    blocks: tuple[Block, ...]
    values: Mapping[str, TensorSpec]


def extract(
    graph: fx.Graph, chain: Chain, flow: Dataflow, inputs: Mapping[str, BlockInput], loss: fx.Node
) -> Extraction:
    """Builds one graph per block; ``inputs`` describes the placeholders of the whole graph by name."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    members: list[list[fx.Node]] = [[] for _ in chain.names]
    for node in graph.nodes:
        if node.name in chain.block_of:
            members[chain.block_of[node.name]].append(node)
    outputs = [_outputs(nodes, index, chain, flow, loss) for index, nodes in enumerate(members)]
    blocks = tuple(
        _block(index, chain.names[index], nodes, outputs[index], chain, flow, inputs, order)
        for index, nodes in enumerate(members)
    )
    values = {node.name: _spec(node) for nodes in outputs[:-1] for node in nodes}
    return Extraction(blocks, values)


def _spec(node: fx.Node) -> TensorSpec:
    value = node.meta["val"]
    assert isinstance(value, torch.Tensor), f"{node.name} is a tuple and crosses a block boundary"
    return TensorSpec(tuple(value.shape), value.dtype)


def _readers(node: fx.Node, chain: Chain, flow: Dataflow) -> set[int]:
    """Blocks that read a value, directly or through operators that they repeat."""
    found: set[int] = set()
    for user in node.users:
        if user.name in chain.block_of:
            found.add(chain.block_of[user.name])
        elif user in flow.repeatable:
            found |= _readers(user, chain, flow)
    return found


def _outputs(nodes: list[fx.Node], index: int, chain: Chain, flow: Dataflow, loss: fx.Node) -> list[fx.Node]:
    crossing = [n for n in nodes if any(reader > index for reader in _readers(n, chain, flow))]
    return [loss] if index == len(chain.names) - 1 else crossing


def _block(
    index: int,
    name: str,
    nodes: list[fx.Node],
    outputs: list[fx.Node],
    chain: Chain,
    flow: Dataflow,
    inputs: Mapping[str, BlockInput],
    order: Mapping[fx.Node, int],
) -> Block:
    needed = _needed(nodes, flow)
    own = set(nodes)
    external = [n for n in needed if n.op == "call_function" and n not in flow.repeatable and n not in own]
    described = {n: BlockInput(n.name, InputKind.ACTIVATION, n.name) for n in external}
    described |= {n: inputs[n.name] for n in needed if n.op == "placeholder"}
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    placeholders = sorted(described, key=lambda n: (_ORDER.index(described[n].kind), order[n]))
    for node in placeholders:
        copies[node] = graph.placeholder(node.name)
    computed = {n for n in needed if n not in described} | own
    for node in sorted(computed, key=order.__getitem__):
        copies[node] = graph.node_copy(node, copies.__getitem__)
    for node, copy in copies.items():
        copy.name = node.name
        copy.meta = dict(node.meta)
    output = graph.output(tuple(copies[node] for node in outputs))
    output.meta = {"val": tuple(node.meta["val"] for node in outputs), "module": "", "source_line": ""}
    output.meta |= {"operator_key": "", "no_grad": False}
    graph.lint()
    return Block(
        index,
        name,
        graph,
        tuple(BlockInput(copies[n].name, described[n].kind, described[n].source) for n in placeholders),
        tuple(node.name for node in outputs),
        "",
    )


def _needed(nodes: list[fx.Node], flow: Dataflow) -> list[fx.Node]:
    """What a block reads: placeholders, values of earlier blocks, and operators that it repeats for itself.

    In-place writers into a repeated value are repeated with it.
    """
    own = set(nodes)
    found: dict[fx.Node, None] = {}
    stack = [source for node in nodes for source in node.all_input_nodes if source not in own]
    while stack:
        node = stack.pop()
        if node in found or node in own:
            continue
        found[node] = None
        if node in flow.repeatable:
            stack += node.all_input_nodes
            stack += flow.writers.get(flow.alias_group[node], ())
    return list(found)
