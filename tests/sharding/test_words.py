"""Words of a plan against placements, and back."""

from dataclasses import replace

import pytest
import torch

from autopar.capture.model_graph import ParameterSpec, TensorSpec
from autopar.sharding.placement import REPLICATE, Placement, Shard
from autopar.sharding.roles import Role, parameter_uses
from autopar.sharding.words import WordError, divisors, placement_of_word, role_for, word_of
from tests.capture.models import small_capture
from tests.lower.models import load


@pytest.mark.parametrize(
    ("word", "shape", "role", "placement"),
    [
        ("column", (8, 4), Role.LINEAR_WEIGHT, Shard(0)),
        ("row", (8, 4), Role.LINEAR_WEIGHT, Shard(1)),
        ("column", (8, 4), Role.PRODUCT_WEIGHT, Shard(1)),
        ("row", (8, 4), Role.PRODUCT_WEIGHT, Shard(0)),
        ("vocab", (8, 4), Role.EMBEDDING, Shard(0)),
        ("column", (8, 4), Role.EMBEDDING, Shard(1)),
        ("vocab", (8, 4), Role.LINEAR_WEIGHT, Shard(0)),
        ("column", (8,), Role.BIAS, Shard(0)),
        ("row", (8,), Role.BIAS, REPLICATE),
        ("column", (8,), Role.NORM, REPLICATE),
        ("column", (8,), Role.CHANNEL_NORM, Shard(0)),
        ("row", (8, 4, 3, 3), Role.CONVOLUTION_WEIGHT, Shard(1)),
        ("replicate", (8, 4), Role.OTHER, REPLICATE),
        ("shard(1)", (8, 4), Role.OTHER, Shard(1)),
    ],
)
def test_placement_of_word(word: str, shape: tuple[int, ...], role: Role, placement: Placement) -> None:
    assert placement_of_word(word, shape, None, role, 2) == placement
    assert placement_of_word(word, shape, None, role, 1) == REPLICATE


def test_fused_parts_are_kept_whole() -> None:
    assert placement_of_word("column", (24, 8), {0: 3}, Role.LINEAR_WEIGHT, 4) == Shard(0, 3)
    assert placement_of_word("shard(0)", (24, 8), {0: 3}, Role.LINEAR_WEIGHT, 4) == Shard(0, 3)


@pytest.mark.parametrize(
    ("word", "match"),
    [
        ("column", "'column' has no meaning for this parameter of shape 8, 6"),
        ("partial", "'partial' is no placement of a parameter"),
        ("shard(5)", "dim 5 does not exist"),
        ("shard(1)", "dim 1 of size 6 does not divide by tensor 4; legal degrees are 1, 2, 3, 6"),
    ],
)
def test_wrong_word(word: str, match: str) -> None:
    with pytest.raises(WordError, match=match):
        placement_of_word(word, (8, 6), None, Role.OTHER, 4)


def test_word_of_gives_the_placement_back() -> None:
    spec = ParameterSpec("weight", TensorSpec((24, 8), torch.float32))
    for role in Role:
        for placement in (REPLICATE, Shard(0), Shard(1)):
            word = word_of(placement, spec, role)
            assert placement_of_word(word, (24, 8), None, role, 2) == placement


def test_roles_of_a_model() -> None:
    _, graph = load("gpt")
    uses = parameter_uses(graph)
    assert role_for("wte.weight", uses["wte.weight"]) is Role.EMBEDDING
    assert role_for("lm_head.weight", uses["wte.weight"]) is Role.LINEAR_WEIGHT
    assert role_for("blocks.0.ln_1.weight", uses["blocks.0.ln_1.weight"]) is Role.NORM
    assert role_for("blocks.0.attn.qkv.bias", uses["blocks.0.attn.qkv.bias"]) is Role.BIAS


@pytest.mark.parametrize("name", ["gpt", "hf-llama", "hf-t5", "hf-resnet"])
def test_uses_are_those_of_every_block_by_itself(name: str) -> None:
    graph = small_capture(name).at(2)
    alone = tuple(replace(block, class_key=block.name, known_calls=None) for block in graph.blocks)
    expected = parameter_uses(replace(graph, blocks=alone))
    found = parameter_uses(graph)
    assert list(found) == list(expected)
    for parameter, uses in expected.items():
        assert [(use.role, use.block, use.module, use.node.target) for use in found[parameter]] == [
            (use.role, use.block, use.module, use.node.target) for use in uses
        ]


def test_divisors() -> None:
    assert divisors(12) == (1, 2, 3, 4, 6, 12)
