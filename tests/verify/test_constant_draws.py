"""Constants in place of random numbers: in the graph, in the module as it runs, in a verification."""

import pytest
import torch

from autopar.capture.capture import capture
from autopar.capture.operator_facts import is_random
from autopar.capture.target import load_target
from autopar.verify.constant_draws import ConstantDraws, with_constant_draws
from autopar.verify.verify import run_verify
from tests.runtime.plans import make_plan
from tests.runtime.world import MODELS

PLANS = {
    "pipeline": {"pipeline": 2, "schedule": "1f1b", "recompute": "full"},
    "data": {"data": 2, "zero": 3},
    "tensor": {"tensor": 2, "lines": (("layers.*", "column"), ("*", "replicate"))},
}


@pytest.fixture(scope="module")
def source():
    return load_target(str(MODELS / "random_draws.py"), {})


def test_the_module_becomes_deterministic(source):
    model, batch = source.build_model(), source.example_batch(4)
    assert model(**batch) != model(**batch)
    with ConstantDraws():
        assert model(**batch) == model(**batch)


def test_the_graph_draws_nothing_any_more(source):
    graph = capture(source).at(4)
    changed, had_draws = with_constant_draws(graph)
    nodes = [node for block in changed.blocks for node in block.graph.nodes]
    assert had_draws and not any(is_random(node) for node in nodes)
    assert any(is_random(node) for block in graph.blocks for node in block.graph.nodes)
    assert not with_constant_draws(changed)[1]
    assert {node.args[1] for node in nodes if node.target is torch.ops.aten.full.default} == {0.5, 1}


@pytest.mark.parametrize("name", PLANS)
def test_a_model_that_draws_can_be_verified(source, name):
    plan = make_plan(capture(source).at(4), num_micro_batches=2, **PLANS[name])
    report = run_verify(plan, source, num_steps=2)
    report.check()
    assert "constants in place of random numbers on both sides" in report.notes
