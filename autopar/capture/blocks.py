"""Building the self-contained graphs of the blocks at one micro-batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx

from autopar.capture.model_graph import Block, BlockInput, TensorSpec
from autopar.capture.recipe import BlockRecipe
from autopar.capture.specialize import META_KEYS, Specializer


def build_blocks(
    graph: fx.Graph, recipes: Sequence[BlockRecipe], class_keys: Sequence[str], specializer: Specializer
) -> tuple[Block, ...]:
    """One block per recipe, its nodes copied from the exported ``graph``."""
    nodes = {node.name: node for node in graph.nodes}
    first: dict[str, Block] = {}  # of each class
    blocks = []
    for index, (recipe, key) in enumerate(zip(recipes, class_keys, strict=True)):
        block = _block(index, recipe, f"{key}-{specializer.size}", nodes, specializer, first.get(key))
        first.setdefault(key, block)
        blocks.append(block)
    return tuple(blocks)


def _block(
    index: int,
    recipe: BlockRecipe,
    class_key: str,
    nodes: Mapping[str, fx.Node],
    specializer: Specializer,
    like: Block | None,
) -> Block:
    """One block; ``like`` is another of its class, whose fake values it shares."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    inputs = []
    known = iter([node.meta["val"] for node in like.graph.nodes] if like else ())
    for entry in recipe.inputs:
        node = nodes[entry.placeholder]
        placeholder = graph.placeholder(node.name)
        placeholder.name = node.name
        placeholder.meta = {key: node.meta[key] for key in META_KEYS}
        placeholder.meta["val"] = next(known) if like else specializer.value(node.meta["val"], fresh=True)
        copies[node] = placeholder
        inputs.append(BlockInput(placeholder.name, entry.kind, entry.source))
    for name in recipe.operators:
        specializer.copy(nodes[name], graph, copies, next(known) if like else None)
    outputs = tuple(copies[nodes[name]] for name in recipe.outputs)
    output = graph.output(outputs)
    output.meta = {"module": "", "source_line": "", "operator_key": "", "no_grad": False}
    output.meta["val"] = tuple(node.meta["val"] for node in outputs)
    if like is None:
        graph.lint()
    return Block(index, recipe.name, graph, tuple(inputs), recipe.outputs, class_key)


def crossing_values(blocks: Sequence[Block]) -> dict[str, TensorSpec]:
    """Global name -> spec of every value that a later block reads."""
    values: dict[str, TensorSpec] = {}
    for block in blocks[:-1]:
        output = next(node for node in reversed(block.graph.nodes) if node.op == "output")
        for name, value in zip(block.outputs, output.meta["val"], strict=True):
            assert isinstance(value, torch.Tensor), f"{name} is a tuple and crosses a block boundary"
            values[name] = TensorSpec(tuple(value.shape), value.dtype)
    return values
