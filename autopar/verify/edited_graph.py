"""A captured model with its operators changed for a comparison; the one that was given stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import fx

from autopar.capture.model_graph import Block, ModelGraph


def edited(graph: ModelGraph, edit: Callable[[fx.Graph, Block], bool]) -> tuple[ModelGraph, bool]:
    """The model with ``edit`` applied to a copy of every block's graph, and whether any was changed."""
    changed = False
    blocks: list[Block] = []
    for block in graph.blocks:
        copied = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        copied.output(copied.graph_copy(block.graph, copies))
        for node, copy in copies.items():
            copy.name = node.name  # a graph avoids names of builtins (slice); the block knows inputs by them
        changed |= edit(copied, block)
        blocks.append(replace(block, graph=copied))
    return replace(graph, blocks=tuple(blocks)), changed
