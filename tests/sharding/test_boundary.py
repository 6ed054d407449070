"""What crosses between blocks is placed by its producer's word."""

import pytest
import torch

from autopar.capture.model_graph import TensorSpec
from autopar.sharding.boundary import block_boundary, boundary_placements, word_placement
from autopar.sharding.placement import REPLICATE, Placement, Shard
from tests.lower.models import load


@pytest.mark.parametrize(
    ("shape", "dtype", "word", "placement"),
    [
        ((4, 8, 16), torch.float32, "replicate", REPLICATE),
        ((4, 8, 16), torch.float32, "sequence", Shard(1)),
        ((4, 8, 16), torch.float32, "batch", Shard(0)),
        ((4, 8, 16), torch.float32, "shard(2)", Shard(2)),
        ((4, 8), torch.float32, "sequence", REPLICATE),  # no sequence dim
        ((4, 8), torch.float32, "shard(2)", REPLICATE),
        ((4, 7, 16), torch.float32, "sequence", REPLICATE),  # does not divide
        ((4, 8, 16), torch.int64, "batch", REPLICATE),  # carries no gradient
        ((), torch.float32, "batch", REPLICATE),
    ],
)
def test_word(shape: tuple[int, ...], dtype: torch.dtype, word: str, placement: Placement) -> None:
    assert word_placement(TensorSpec(shape, dtype), word, 2) == placement


def test_values_that_skip_blocks_are_replicated() -> None:
    _, graph = load("hf-t5")
    words = {block.index: "batch" for block in graph.blocks}
    placements = boundary_placements(graph, words, 2)
    producer = {name: block.index for block in graph.blocks for name in block.outputs}
    readers: dict[str, set[int]] = {}
    for block in graph.blocks:
        for entry in block.inputs:
            readers.setdefault(entry.source, set()).add(block.index)
    skipping = {n for n, p in producer.items() if readers.get(n, {p + 1}) != {p + 1}}
    assert skipping, "the encoder's output goes to every decoder block"
    assert all(placements[name] == REPLICATE for name in skipping)
    assert any(isinstance(p, Shard) for p in placements.values())
    assert placements[graph.loss] == REPLICATE


def test_one_block_between_two_words() -> None:
    _, graph = load("gpt")
    inputs, outputs = block_boundary(graph, graph.blocks[2], "replicate", "sequence", 2)
    assert set(inputs.values()) == {REPLICATE} and outputs == (Shard(1),)
