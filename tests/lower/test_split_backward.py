"""Programs whose gradients of weights come later equal plain ones; what is left for later is what may be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from autopar.capture.model_graph import InputKind
from autopar.lower.block import lower_block
from autopar.lower.resolve import ResolvedPlan, resolve
from autopar.lower.split_backward import split_backward
from autopar.lower.weight_gradients import WeightGradients, convolution
from tests.lower.chain import StepResult, assert_same, forward, leaves, run_plain, state_placements
from tests.lower.models import MODELS, load, plan_for, tensors_of
from tests.lower.pieces import combine, scatter
from tests.lower.ranks import ThreadedAxis, run_on_ranks

# Operators of each toy model whose weight gradients are left for later; recurrent layers are not.
LATER = {
    "gpt": {"linear": 9, "embedding": 2},
    "resnet": {"linear": 1, "convolution": 20},
    "perception": {"linear": 3, "convolution": 2},
    "recommender": {"embedding": 4},
    "hf-gpt2": {"addmm": 8, "linear": 1, "embedding": 2},
}


def split_modules(resolved: ResolvedPlan) -> list[fx.GraphModule]:
    modules = []
    for decision in resolved.blocks:
        weights = {x.placeholder for x in decision.block.inputs if x.kind is InputKind.PARAMETER}
        modules.append(split_backward(lower_block(decision.block, decision.sharding).graph, weights))
    return modules


def run_split(resolved: ResolvedPlan, state: dict[str, Tensor], batch: dict[str, Tensor]) -> StepResult:
    """One forward, input backward and weight backward on every rank, put together again."""
    graph, size = resolved.graph, resolved.plan.mesh.tensor
    assert size is not None
    modules = split_modules(resolved)
    placements = state_placements(resolved)
    local = {name: scatter(state[name], placement, size) for name, placement in placements.items()}

    def rank(axis: ThreadedAxis) -> tuple[Tensor, dict[str, Tensor | None], int]:
        own = leaves(graph, {name: pieces[axis.rank].clone() for name, pieces in local.items()})
        later = WeightGradients()

        def bind(module: fx.GraphModule) -> Any:
            return lambda axis, *inputs: module(axis, later, *inputs)

        loss = forward(graph, [bind(module) for module in modules], own, batch, axis)  # type: ignore[arg-type]
        loss.backward()
        num_later = len(later)
        later.run()
        return loss.detach(), {name: own[name].grad for name in graph.parameters}, num_later

    ranks = run_on_ranks(size, rank)
    assert {num_later for *_, num_later in ranks} == {sum(count_later(resolved).values())}
    gradients: dict[str, Tensor | None] = {}
    for name in graph.parameters:
        pieces = [gradients[name] for _, gradients, _ in ranks]
        found = [piece for piece in pieces if piece is not None]
        gradients[name] = combine(found, placements[name]) if found else None
    return StepResult(ranks[0][0], gradients, {})


def count_later(resolved: ResolvedPlan) -> dict[str, int]:
    found: dict[str, int] = {}
    for module in split_modules(resolved):
        queue = next(n for n in module.graph.nodes if n.name == "weight_gradients")
        for user in queue.users:
            name = user.target.__name__  # type: ignore[union-attr]
            found[name] = found.get(name, 0) + 1
    return found


QUICK = ("gpt", "resnet", "perception", "recommender", "hf-gpt2")
WAYS = [
    *((name, "replicate") for name in QUICK),
    *((name, "sequence") for name in ("gpt", "hf-gpt2")),
    *(pytest.param(name, "replicate", marks=pytest.mark.slow) for name in MODELS if name not in QUICK),
    pytest.param("hf-t5", "sequence", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "words"), WAYS)
def test_model_equals_plain_blocks(name: str, words: str) -> None:
    model = MODELS[name]
    source, graph = load(name)
    state, batch = tensors_of(source)
    resolved = resolve(plan_for(graph, {**model.vocab, **model.tensor}, 2, {"*": words}), graph)
    assert_same(run_split(resolved, state, batch), run_plain(graph, state, batch), model.tolerance)


@pytest.mark.parametrize("name", [name for name in LATER if name in QUICK])
def test_products_with_weights_are_left_for_later(name: str) -> None:
    _, graph = load(name)
    assert count_later(resolve(plan_for(graph, {}, 1), graph)) == LATER[name]


def test_without_a_queue_the_program_is_the_plain_one() -> None:
    source, graph = load("gpt")
    state, batch = tensors_of(source)
    resolved = resolve(plan_for(graph, {}, 1), graph)
    modules = split_modules(resolved)

    def bind(module: fx.GraphModule) -> Any:
        return lambda axis, *inputs: module(axis, None, *inputs)

    def rank(axis: ThreadedAxis) -> Tensor:
        own = leaves(graph, {name: tensor.detach().clone() for name, tensor in state.items()})
        loss = forward(graph, [bind(module) for module in modules], own, batch, axis)  # type: ignore[arg-type]
        loss.backward()
        assert all(own[name].grad is not None for name in graph.parameters)
        return loss.detach()

    assert run_on_ranks(1, rank)[0] == run_plain(graph, state, batch).loss


def program(build: Any, **examples: Tensor) -> fx.GraphModule:
    """A little program; ``build`` adds its nodes and returns the result."""
    graph = fx.Graph()
    graph.placeholder("axis")
    inputs = []
    for name, example in examples.items():
        inputs.append(graph.placeholder(name))
        inputs[-1].meta["val"] = example
    graph.output((build(graph, *inputs),))
    return fx.GraphModule(nn.Module(), graph)


def call(graph: fx.Graph, target: Any, *args: Any, like: Tensor) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta["val"] = like
    return node


aten = torch.ops.aten


@pytest.mark.parametrize(
    ("build", "waits"),
    [
        (lambda g, x, w: call(g, aten.linear.default, x, call(g, aten.t.default, w, like=w), like=x), True),
        (
            lambda g, x, w: call(g, aten.linear.default, x, call(g, aten.tanh.default, w, like=w), like=x),
            False,
        ),
        (lambda g, x, w: call(g, aten.linear.default, x, call(g, aten.t.default, x, like=x), like=x), False),
        (lambda g, x, w: call(g, aten.matmul.default, x, w, like=x), True),
        (lambda g, x, w: call(g, aten.matmul.default, w, x, like=x), False),
        (lambda g, x, w: call(g, aten.matmul.default, w, w, like=x), False),
    ],
    ids=["view", "computed", "activation", "product", "from-the-left", "of-itself"],
)
def test_only_what_is_a_parameter_but_for_views_waits(build: Any, waits: bool) -> None:
    x, w = (torch.randn(4, 4, dtype=torch.float64) for _ in range(2))
    plain = program(build, x=x, w=w)
    split = split_backward(plain, {"w"})
    results = []
    for module in (plain, split):
        own = [tensor.clone().requires_grad_() for tensor in (x, w)]
        later = WeightGradients()
        extra = (later,) if module is split else ()
        (result,) = module(None, *extra, *own)
        result.square().sum().backward()
        assert len(later) == (waits and module is split)
        later.run()
        results.append([tensor.grad for tensor in own])
    for found, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_dims", [1, 2, 3])
def test_convolutions_with_every_option(num_dims: int) -> None:
    target = getattr(aten, f"conv{num_dims}d").default
    x = torch.randn(2, 4, *(7,) * num_dims, dtype=torch.float64)
    w = torch.randn(6, 2, *(3,) * num_dims, dtype=torch.float64)
    b = torch.randn(6, dtype=torch.float64)
    options = ([2] * num_dims, [1] * num_dims, [2], 2)
    plain = program(lambda g, *t: call(g, target, *t, *options, like=x), x=x, w=w, b=b)
    split = split_backward(plain, {"w", "b"})
    results = []
    for module in (plain, split):
        own = [tensor.clone().requires_grad_(tensor is not x) for tensor in (x, w, b)]
        later = WeightGradients()
        extra = (later,) if module is split else ()
        (result,) = module(None, *extra, *own)
        result.square().sum().backward()
        later.run()
        results.append([result, *(tensor.grad for tensor in own[1:])])
    for found, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_a_convolutions_weight_may_be_freed_before_its_gradient_is_made() -> None:
    # FSDP does so between the two halves; found by a random plan, on a grouped and dilated convolution.
    x, weight = torch.randn(2, 4, 6, 6), nn.Parameter(torch.randn(4, 2, 3, 3))
    F.conv2d(x, weight, None, 1, 2, 2, 2).square().sum().backward()
    expected, weight.grad = weight.grad, None
    later = WeightGradients()
    convolution(later, x, weight, None, 1, 2, 2, 2).square().sum().backward()
    weight.untyped_storage().resize_(0)
    later.run()
    assert weight.grad is not None and expected is not None
    assert torch.allclose(weight.grad, expected)
