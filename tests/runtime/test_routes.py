"""What is read off the programs of a stage."""

import pytest
import torch

from autopar.lower.resolve import resolve
from autopar.plan.decisions import Recompute
from autopar.runtime.routes import block_program, lowered_program, only_looks_up
from tests.lower.models import load, plan_for


def program_of(model, name, recompute=Recompute.NONE):
    _, graph = load(model)
    resolved = resolve(plan_for(graph, {}, 1), graph)
    (decision,) = (d for d in resolved.blocks if d.block.name == name)
    lowered = lowered_program(decision.block, decision.sharding, torch.device("cpu"))
    return block_program(decision.block, lowered, recompute, frozenset(), is_split=False)


@pytest.mark.parametrize(
    ("name", "expected"), [("wte", True), ("wpe", True), ("blocks.0", False), ("lm_head", False)]
)
def test_tables_of_embeddings_are_only_looked_up(name, expected):
    assert only_looks_up(program_of("gpt", name)) is expected


def test_what_is_recomputed_is_read_again():
    assert not only_looks_up(program_of("gpt", "wte", Recompute.FULL))
