"""Random placements of parameters, words between blocks and rules of operators: the result stays the same."""

from __future__ import annotations

import operator
import random

import pytest

from autopar.capture.model_graph import Block, ModelGraph
from autopar.lower.resolve import resolve
from autopar.plan.decisions import Plan
from autopar.sharding.aliasing import hidden_writes
from autopar.sharding.block_facts import BlockFacts
from tests.lower.chain import assert_same, run_plain, run_sharded
from tests.lower.models import load, plan_for, tensors_of


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(s, marks=pytest.mark.slow) for s in range(3, 12))]
)
@pytest.mark.parametrize("name", ["gpt", "perception", "hf-llama"])
def test_random_plan_equals_plain_blocks(name: str, seed: int) -> None:
    source, graph = load(name)
    state, batch = tensors_of(source)
    chance = random.Random(f"{name} {seed}")
    plan = random_plan(graph, chance, degree=chance.choice([2, 4]))
    tolerance = 1e-5 if name.startswith("hf") else 1e-10
    assert_same(run_sharded(resolve(plan, graph), state, batch), run_plain(graph, state, batch), tolerance)


def random_plan(graph: ModelGraph, chance: random.Random, degree: int) -> Plan:
    """Each parameter, boundary and about a third of the operators drawn from what is legal."""
    tensor: dict[str, str] = {}
    for name, spec in graph.parameters.items():
        legal = ["replicate"]
        for dim, size in enumerate(spec.spec.shape):
            if size % ((spec.fused_dims or {}).get(dim, 1) * degree) == 0:
                legal.append(f"shard({dim})")
        tensor[name] = chance.choice(legal)
    words = ["replicate", "sequence", "batch", "shard(2)"]
    activations = {block.name: chance.choice(words) for block in graph.blocks}
    operators: dict[str, str] = {}
    for block in graph.blocks:
        facts, fused = BlockFacts(block), fused_parts(graph, block, tensor)
        for node in block.graph.nodes:
            if node.op != "call_function" or node.target is operator.getitem or hidden_writes(node):
                continue
            if chance.random() < 0.3:
                rule = chance.choice(facts.rules(node, degree, fused))
                operators[node.meta["operator_key"]] = str(rule)
    return plan_for(graph, tensor, degree, activations, operators)


def fused_parts(graph: ModelGraph, block: Block, tensor: dict[str, str]) -> frozenset[int]:
    """Numbers of fused parts inside which the block's parameters are sharded."""
    specs = [graph.parameters[entry.source] for entry in block.inputs if entry.source in graph.parameters]
    return frozenset(
        parts
        for spec in specs
        for dim, parts in (spec.fused_dims or {}).items()
        if tensor[spec.name] == f"shard({dim})"
    )
