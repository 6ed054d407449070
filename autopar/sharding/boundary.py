"""Placements of the values that cross from block to block, from the word of the producing block.

``replicate``, ``sequence`` (dim 1 of floating values with three dims or more), ``batch`` (dim 0) or
``shard(d)`` (logits by vocabulary: ``shard(2)``). A value for which that dim does not exist or does not
divide, that any block but the next one reads, or that is not floating point is replicated. The gradient of
a boundary value has the placement of the value.
"""

from __future__ import annotations

from collections.abc import Mapping

from autopar.capture.model_graph import Block, InputKind, ModelGraph, TensorSpec
from autopar.sharding.placement import REPLICATE, Placement, Shard, parse_placement

WORDS = ("replicate", "sequence", "batch", "shard(d)")


def word_placement(spec: TensorSpec, word: str, degree: int) -> Placement:
    """Placement of a value that only the next block reads, where its producer's output word is ``word``."""
    placement = parse_placement(word)
    dim = placement.dim if isinstance(placement, Shard) else {"sequence": 1, "batch": 0}.get(word)
    least_dims = 3 if word == "sequence" else 1 + (dim or 0)
    if dim is None or not spec.dtype.is_floating_point or len(spec.shape) < least_dims:
        return REPLICATE
    size = spec.shape[dim]
    return Shard(dim) if size > 1 and size % degree == 0 else REPLICATE


def values_for_next_only(graph: ModelGraph) -> frozenset[str]:
    """Global names of boundary values that no block but their producer's successor reads."""
    producer = {name: block.index for block in graph.blocks for name in block.outputs}
    further = {
        item.source
        for block in graph.blocks
        for item in block.inputs
        if item.kind == InputKind.ACTIVATION and producer[item.source] + 1 != block.index
    }
    return frozenset(producer) - further - {graph.loss}


def boundary_placements(graph: ModelGraph, words: Mapping[int, str], degree: int) -> dict[str, Placement]:
    """Placement of every value that crosses a boundary (and of the loss), by global name.

    Args:
        graph: the model.
        words: output word by block index.
        degree: size of the tensor axis.
    """
    near = values_for_next_only(graph)
    found: dict[str, Placement] = {}
    for block in graph.blocks:
        for name in block.outputs:
            word = words.get(block.index, "replicate") if name in near else "replicate"
            found[name] = (
                word_placement(graph.values[name], word, degree) if name in graph.values else REPLICATE
            )
    return found


def block_boundary(
    graph: ModelGraph, block: Block, input_word: str, output_word: str, degree: int
) -> tuple[dict[str, Placement], tuple[Placement, ...]]:
    """Placements of what a block reads (by global name) and returns, given the words on both sides."""
    placements = boundary_placements(graph, {block.index - 1: input_word, block.index: output_word}, degree)
    inputs = {i.source: placements[i.source] for i in block.inputs if i.kind == InputKind.ACTIVATION}
    return inputs, tuple(placements[name] for name in block.outputs)
