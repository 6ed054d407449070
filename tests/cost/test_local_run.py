"""The quick walk over a block against the program that the lowering builds, run on fake tensors."""

from __future__ import annotations

import random
from functools import cache

import pytest

from autopar.capture.model_graph import Block
from autopar.cost.blocks import Readings
from autopar.cost.local_run import LocalRun
from autopar.cost.operator_traffic import COPY_IF_NEEDED
from autopar.cost.operators import node_seconds, operator_name
from autopar.errors import PlanError
from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import Cluster, make_cluster
from autopar.lower.block import lower_block
from autopar.lower.resolve import resolve
from autopar.sharding.gradients import nodes_with_gradient
from autopar.sharding.propagation import BlockSharding
from tests.cost.layers import captured, megatron
from tests.cost.program_memory import block_memory
from tests.lower.models import MODELS, load
from tests.lower.test_random_plans import random_plan


@cache
def cluster() -> Cluster:
    return make_cluster(load_device("a100-sxm-80gb"))


@cache
def readings(_: str) -> Readings:
    """One for a model: what was observed under one sharding must serve all others."""
    return Readings(cluster())


def check(block: Block, sharding: BlockSharding, made: Readings) -> None:
    run = LocalRun(block, sharding, made.facts_of(block), cluster().device)
    run.walk()
    lowered = lower_block(block, sharding)
    assert run.ledger.memory() == block_memory(block, lowered), block.name
    calls = (n for n in lowered.graph.graph.nodes if n.op == "call_function")
    nodes = [n for n in calls if n.meta["val"] is not None]  # a kept shard computes nothing
    for node, call in zip(nodes, run.calls, strict=True):
        # The program's strides are those of CPU kernels, where the walk has those of GPU kernels.
        if operator_name(node.target) not in COPY_IF_NEEDED:
            read_s = node_seconds(node, frozenset(), cluster().device).forward_s
            assert call.cost.forward_s == pytest.approx(read_s, rel=1e-9), (block.name, node)
    for backward in (False, True):
        sent = [t for call in run.calls for t in call.transfers if t.backward is backward]
        found = [t for n in nodes for t in n.meta.get("collectives") or () if t.backward is backward]
        assert sent == found, block.name


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=pytest.mark.slow if seed >= 4 else ()) for seed in range(6)]
)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "hf-t5" else ()) for name in MODELS]
)
def test_the_walk_finds_what_the_program_shows(name: str, seed: int) -> None:
    _, graph = load(name)
    chance = random.Random(f"{name} {seed}")
    plan = random_plan(graph, chance, degree=chance.choice([2, 4]))
    seen = set()
    try:
        decisions = resolve(plan, graph).blocks
    except PlanError:
        pytest.skip("operators of one line differ in their rules")
    for decision in decisions:
        key = (decision.block.class_key, str(sorted((k, str(v)) for k, v in decision.sharding.rules.items())))
        if key not in seen:
            seen.add(key)
            check(decision.block, decision.sharding, readings(name))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["gpt", "resnet"])
def test_what_is_frozen_is_kept_as_autograd_keeps_it(name: str, seed: int) -> None:
    _, graph = load(name)
    chance = random.Random(f"frozen {name} {seed}")
    plan = random_plan(graph, chance, degree=chance.choice([1, 2]))
    names = sorted(graph.parameters)
    frozen = frozenset(names if seed == 0 else chance.sample(names, len(names) // 2))
    made = Readings(cluster())
    for decision in resolve(plan, graph).blocks:
        block, sharding = decision.block, decision.sharding
        run = LocalRun(block, sharding, made.facts_of(block, frozen), cluster().device)
        run.walk()
        assert run.ledger.memory() == block_memory(block, lower_block(block, sharding), frozen), block.name


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("degree", [1, 2, 4])
def test_what_was_observed_at_one_size_holds_at_others(batch: int, degree: int) -> None:
    graph = captured(2, 64, 4, 32).at(batch)
    for block in graph.blocks:
        for word in ("replicate", "sequence", "batch"):
            check(block, megatron(graph, block, degree, word), readings("layers"))


def test_blocks_of_a_class_are_observed_once() -> None:
    graph, made = captured(2, 64, 4, 32).at(2), Readings(cluster())
    first, second = graph.blocks[1:3]
    made.of(first, megatron(graph, first, 2), 2)
    observed = len(made.effects)
    assert 0 < observed <= 2 * len(nodes_with_gradient(first))
    made.of(second, megatron(graph, second, 2), 2)
    bigger = captured(2, 64, 4, 32).at(6)
    made.of(bigger.blocks[1], megatron(bigger, bigger.blocks[1], 2), 6)
    assert len(made.effects) == observed
