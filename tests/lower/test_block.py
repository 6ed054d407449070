"""What a lowered block looks like: local shapes, collectives and their sizes, fallbacks."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from autopar.capture.model_graph import Block
from autopar.hardware.link import CollectiveKind
from autopar.lower.block import LoweredBlock, local_call, lower_block
from autopar.lower.resolve import BlockDecision, resolve
from autopar.sharding.placement import REPLICATE
from autopar.sharding.rule import Rule
from tests.lower.models import MODELS, load, plan_for

TENSOR = {**MODELS["gpt"].vocab, **MODELS["gpt"].tensor}
BYTES = 4 * 16 * 32 * 8  # one activation (micro-batch, seq, hidden) in float64


def decisions(words: dict[str, str], degree: int = 2) -> dict[str, BlockDecision]:
    _, graph = load("gpt")
    return {d.block.name: d for d in resolve(plan_for(graph, TENSOR, degree, words), graph).blocks}


def lowered(name: str, words: dict[str, str], degree: int = 2) -> LoweredBlock:
    decision = decisions(words, degree)[name]
    return lower_block(decision.block, decision.sharding)


def conversions(block: LoweredBlock) -> list[str]:
    nodes = block.graph.graph.nodes
    return [node.target.__name__ for node in nodes if "lowered_from" in node.meta]


def test_replicated_boundaries_give_megatrons_four_all_reduces() -> None:
    block = lowered("blocks.0", {"*": "replicate"})
    assert conversions(block) == [
        "copy_to",
        "to_partial",
        "all_reduce",
        "copy_to",
        "to_partial",
        "all_reduce",
    ]
    transfers = [t for node in block.graph.graph.nodes for t in node.meta.get("collectives", ())]
    assert {(t.kind, t.num_bytes) for t in transfers} == {(CollectiveKind.ALL_REDUCE, BYTES)}
    assert [t.backward for t in transfers] == [True, False, True, False]


def test_sequence_boundaries_give_gathers_and_reduce_scatters() -> None:
    found = conversions(lowered("blocks.0", {"*": "sequence"}))
    assert [name for name in found if name not in ("copy_to", "to_partial")] == [
        "gather_partial",
        "reduce_scatter",
        "gather_partial",
        "reduce_scatter",
    ]


def test_logits_sharded_by_vocabulary_are_never_gathered() -> None:
    words = {"lm_head": "shard(2)", "*": "replicate"}
    assert conversions(lowered("lm_head", words)) == ["copy_to"]
    loss = lowered("loss", words)
    assert conversions(loss) == []
    assert [node.target.__name__ for node in loss.graph.graph.nodes if node.meta.get("collectives")] == [
        "cross_entropy_vocab"
    ]


def test_values_have_local_shapes() -> None:
    block = lowered("blocks.0", {"*": "sequence"}, degree=4)
    shapes = {
        node.name: tuple(node.meta["val"].shape)
        for node in block.graph.graph.nodes
        if node.op != "output" and isinstance(node.meta["val"], torch.Tensor)
    }
    assert shapes["scaled_dot_product_attention_default"] == (4, 1, 16, 8)
    assert shapes["gelu_default"] == (4, 16, 32)
    assert block.graph.graph.output_node().meta["val"][0].shape == (4, 4, 32)


def test_degree_one_is_the_block_itself() -> None:
    _, graph = load("gpt")
    decision = resolve(plan_for(graph, {}, 1), graph).blocks[2]
    block = lower_block(decision.block, decision.sharding)
    own = [node.target for node in decision.block.graph.nodes if node.op == "call_function"]
    assert [node.target for node in block.graph.graph.nodes if node.op == "call_function"] == own
    assert next(iter(block.graph.graph.nodes)).name == "axis"


@pytest.mark.parametrize("degree", [1, 2])
def test_sparse_embeddings_get_dense_gradients(degree: int) -> None:
    graph = fx.Graph()
    weight, indices = graph.placeholder("weight"), graph.placeholder("indices")
    weight.meta["val"], indices.meta["val"] = torch.zeros(8, 4), torch.zeros(3, dtype=torch.int64)
    look_up = torch.ops.aten.embedding.default
    node = graph.call_function(look_up, (weight, indices, -1, False, True))
    node.meta["val"] = torch.zeros(3, 4)
    rule = Rule((REPLICATE, REPLICATE), REPLICATE)
    args, kwargs = local_call(node, rule, degree, ("here", "there"))
    assert args == ("here", "there", -1, False, False) and not kwargs


def test_fallbacks_are_named() -> None:
    _, graph = load("hf-mixtral")
    resolved = resolve(plan_for(graph, MODELS["hf-mixtral"].tensor, 2), graph)
    layer = next(d for d in resolved.blocks if d.block.name == "model.layers.0")
    found = lower_block(layer.block, layer.sharding).fallbacks
    assert any("grouped_mm" in key for key in found) and any("histc" in key for key in found)
    assert not any("linear" in key for key in found)


@pytest.mark.parametrize("name", ["gpt", "hf-t5", "perception"])
def test_lowering_is_deterministic(name: str) -> None:
    _, graph = load(name)
    texts = []
    for _ in range(2):
        resolved = resolve(plan_for(graph, MODELS[name].tensor, 2, {"*": "sequence"}), graph)
        texts.append([lower_block(d.block, d.sharding).graph.code for d in resolved.blocks])
    assert texts[0] == texts[1]


def placeholders(block: Block) -> list[str]:
    return [node.name for node in block.graph.nodes if node.op == "placeholder"]


def test_axis_comes_first_then_the_inputs_in_order() -> None:
    decision = decisions({"*": "sequence"})["blocks.1"]
    graph = lower_block(decision.block, decision.sharding).graph.graph
    found = [node.name for node in graph.nodes if node.op == "placeholder"]
    assert found == ["axis", *placeholders(decision.block)]
