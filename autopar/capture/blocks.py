"""Building the self-contained graphs of the blocks at one micro-batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import fx

from autopar.capture.class_key import class_key_at
from autopar.capture.deferred import deferred
from autopar.capture.model_graph import Block, TensorSpec, calls_of
from autopar.capture.recipe import BlockRecipe
from autopar.capture.specialize import META_KEYS, Specializer


def build_blocks(
    graph: fx.Graph, recipes: Sequence[BlockRecipe], class_keys: Sequence[str], specializer: Specializer
) -> tuple[Block, ...]:
    """One block per recipe, its nodes copied from the exported ``graph``: of the first of each class at once,
    of the others when they are asked for.
    """
    nodes = {node.name: node for node in graph.nodes}
    first: dict[str, fx.Graph] = {}  # of each class
    blocks = []
    for index, (recipe, key) in enumerate(zip(recipes, class_keys, strict=True)):
        if key in first:
            block_graph = deferred(partial(_block_graph, recipe, nodes, specializer, first[key]))
        else:
            block_graph = first[key] = _block_graph(recipe, nodes, specializer, None)
        class_key = class_key_at(key, specializer.size)
        calls = calls_of(nodes[name] for name in recipe.operators)
        blocks.append(Block(index, recipe.name, block_graph, recipe.inputs, recipe.outputs, class_key, calls))
    return tuple(blocks)


def _block_graph(
    recipe: BlockRecipe, nodes: Mapping[str, fx.Node], specializer: Specializer, like: fx.Graph | None
) -> fx.Graph:
    """The graph of one block; ``like`` is that of another of its class, whose fake values it shares."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    known = iter([node.meta["val"] for node in like.nodes] if like else ())
    for entry in recipe.inputs:
        node = nodes[entry.placeholder]
        placeholder = graph.placeholder(node.name)
        placeholder.name = node.name
        placeholder.meta = {key: node.meta[key] for key in META_KEYS}
        placeholder.meta["val"] = next(known) if like else specializer.value(node.meta["val"], fresh=True)
        copies[node] = placeholder
    for name in recipe.operators:
        specializer.copy(nodes[name], graph, copies, next(known) if like else None)
    outputs = tuple(copies[nodes[name]] for name in recipe.outputs)
    output = graph.output(outputs)
    output.meta = {"module": "", "source_line": "", "operator_key": "", "no_grad": False}
    output.meta["val"] = tuple(node.meta["val"] for node in outputs)
    if like is None:
        graph.lint()
    return graph


def crossing_values(blocks: Sequence[Block]) -> dict[str, TensorSpec]:
    """Global name -> spec of every value that a later block reads."""
    values: dict[str, TensorSpec] = {}
    returned: dict[str, tuple[object, ...]] = {}  # by class
    for block in blocks[:-1]:
        if block.class_key not in returned:
            returned[block.class_key] = block.graph.output_node().meta["val"]
        for name, value in zip(block.outputs, returned[block.class_key], strict=True):
            assert isinstance(value, torch.Tensor), f"{name} is a tuple and crosses a block boundary"
            values[name] = TensorSpec(tuple(value.shape), value.dtype)
    return values
