"""Every example model on 2 and 4 ranks, in Megatron-like plans, equals its plain blocks, gradients too."""

from __future__ import annotations

import operator

import pytest

from autopar.lower.resolve import resolve
from autopar.sharding.rules.operator import tensor_arguments
from tests.lower.chain import assert_same, run_plain, run_sharded
from tests.lower.models import MODELS, load, plan_for, tensors_of
from tests.sharding.cases import CASES

# Operators that the example models contain and that run replicated.
FALLBACKS = {
    "aten.add_.Tensor",  # the step counter of batch normalisation
    "aten.copy_.default",
    "aten.fill_.Tensor",
    "aten.masked_fill_.Scalar",
    "aten.histc.default",
    "aten.index_put.default",
    "transformers.grouped_mm_fallback.default",
}
UNPROVABLE = {"aten.empty_like.default"}  # uninitialised: nothing to compare


@pytest.mark.parametrize(
    ("degree", "words"),
    [
        (2, "replicate"),
        (2, "batch"),
        (4, "sequence"),
        pytest.param(2, "sequence", marks=pytest.mark.slow),
        pytest.param(4, "replicate", marks=pytest.mark.slow),
        pytest.param(4, "batch", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", list(MODELS))
def test_model_equals_plain_blocks(name: str, degree: int, words: str) -> None:
    model = MODELS[name]
    source, graph = load(name)
    state, batch = tensors_of(source)
    plan = plan_for(graph, {**model.vocab, **model.tensor}, degree, {"*": words})
    assert_same(
        run_sharded(resolve(plan, graph), state, batch), run_plain(graph, state, batch), model.tolerance
    )


def test_every_operator_of_the_models_is_proved_or_a_named_fallback() -> None:
    proved = {case.target for case in CASES}
    unproved = {
        str(node.target)
        for name in MODELS
        for block in load(name)[1].blocks
        for node in block.graph.nodes
        if node.op == "call_function"
        and node.target is not operator.getitem
        and tensor_arguments(node)
        and node.target not in proved
    }
    assert unproved == FALLBACKS | UNPROVABLE
