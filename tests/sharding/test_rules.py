"""Every rule proved by execution: the operator whole against the operator on shards, values and gradients."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from autopar.capture.model_graph import InputKind
from autopar.lower.block import lower_block
from autopar.sharding.placement import REPLICATE, Placement, Shard, local_shape
from autopar.sharding.propagation import BlockSharding, element_rule, value_placement
from autopar.sharding.rule import Rule, find_rule
from autopar.sharding.rules.operator import tensor_arguments
from autopar.sharding.rules.table import families_by_name, has_rules, strategies
from tests.lower.pieces import combine, scatter
from tests.lower.ranks import ThreadedAxis, run_on_ranks
from tests.sharding.cases import CASES
from tests.sharding.single_operator import Case, SingleOperator, build

FUSED = frozenset({2, 3})
UNINITIALISED = {"empty_like", "new_empty"}  # nothing to compare


@pytest.mark.parametrize("degree", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_rules_hold(case: Case, degree: int) -> None:
    single = build(case)
    values, gradients = run_whole(single)
    for rule in strategies(single.node, degree, FUSED):
        check_rule(single, rule, degree, values, gradients)


def run_whole(single: SingleOperator) -> tuple[list[Tensor], list[Tensor | None]]:
    inputs = [
        leaf(value, entry.kind) for value, entry in zip(single.inputs, single.block.inputs, strict=True)
    ]
    results = fx.GraphModule({}, single.block.graph)(*inputs)
    backward(results, cotangents(results))
    return [r.detach() for r in results], [gradient_of(x) for x in inputs]


def check_rule(
    single: SingleOperator, rule: Rule, degree: int, values: list[Tensor], gradients: list[Tensor | None]
) -> None:
    """Runs the operator on every rank as ``rule`` says and compares what comes out with the whole run."""
    block, rules = single.block, {single.node.name: rule}
    placed = value_placement(single.node, rule)
    for node in block.graph.nodes:
        if node.target is operator.getitem:
            rules[node.name] = element_rule(node, placed)
    outputs: tuple[Placement, ...] = placed if isinstance(placed, tuple) else (placed,)
    arguments = tensor_arguments(single.node)
    inputs = {node.name: wanted for node, wanted in zip(arguments, rule.inputs, strict=True)}
    lowered = lower_block(block, BlockSharding(degree, {}, inputs, outputs, rules))
    local = [
        scatter(value, inputs[entry.placeholder], degree)
        for value, entry in zip(single.inputs, block.inputs, strict=True)
    ]
    upstream = [
        scatter(g, p if isinstance(p, Shard) else REPLICATE, degree)
        for g, p in zip(cotangents(values), outputs, strict=True)
    ]

    def rank(axis: ThreadedAxis) -> tuple[list[Tensor], list[Tensor | None], list[Tensor]]:
        given = [
            leaf(pieces[axis.rank], entry.kind) for pieces, entry in zip(local, block.inputs, strict=True)
        ]
        results = lowered.graph(axis, *given)
        backward(results, [pieces[axis.rank] for pieces in upstream])
        return [r.detach() for r in results], [gradient_of(x) for x in given], [x.detach() for x in given]

    ranks = run_on_ranks(degree, rank)
    fakes = lowered.graph.graph.output_node().meta["val"]
    for index, (value, placement) in enumerate(zip(values, outputs, strict=True)):
        pieces = [results[index] for results, _, _ in ranks]
        assert pieces[0].shape == fakes[index].shape == local_shape(tuple(value.shape), placement, degree), (
            str(rule)
        )
        assert pieces[0].dtype == fakes[index].dtype == value.dtype
        close(combine(pieces, placement), value, f"{rule}: value {index}")
    for index, (gradient, entry) in enumerate(zip(gradients, block.inputs, strict=True)):
        placement = inputs[entry.placeholder]
        if gradient is not None:
            pieces = [found[index] for _, found, _ in ranks]
            assert all(piece is not None for piece in pieces), f"{rule}: no gradient of {entry.placeholder}"
            dual = placement if isinstance(placement, Shard) else REPLICATE
            close(combine(pieces, dual), gradient, f"{rule}: gradient of {entry.placeholder}")
        if entry.kind is InputKind.BUFFER:
            after = combine([given[index] for _, _, given in ranks], placement)
            close(after, updated(single, index), f"{rule}: running statistic {entry.placeholder}")


def updated(single: SingleOperator, index: int) -> Tensor:
    """A buffer after the whole operator ran."""
    inputs = [value.clone() for value in single.inputs]
    fx.GraphModule({}, single.block.graph)(*inputs)
    return inputs[index]


def leaf(value: Tensor, kind: InputKind) -> Tensor:
    value = value.clone()
    return value.requires_grad_(value.is_floating_point() and kind is InputKind.ACTIVATION)


def cotangents(results: Any) -> list[Tensor]:
    """Different numbers for every element, the same in every run."""
    return [
        torch.linspace(-1.0, 2.0, max(r.numel(), 1), dtype=torch.float64)[: r.numel()].reshape(r.shape).sin()
        for r in results
    ]


def backward(results: Any, gradients: list[Tensor]) -> None:
    used = [(r, g.to(r.dtype)) for r, g in zip(results, gradients, strict=True) if r.requires_grad]
    if used:
        torch.autograd.backward([r for r, _ in used], [g for _, g in used])


def gradient_of(tensor: Tensor) -> Tensor | None:
    return tensor.grad


def close(found: Tensor, wanted: Tensor, what: str) -> None:
    tolerance = 1e-10 if wanted.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(
        found, wanted, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda text: f"{what}\n{text}"
    )


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_rules_divide_and_have_texts_of_their_own(case: Case) -> None:
    node = build(case).node
    rules = strategies(node, 2, FUSED)
    assert rules[0].is_replicated
    for rule in rules:
        assert find_rule(str(rule), rules) == rule
    for rule in strategies(node, 5, FUSED):  # no size is a multiple of 5
        assert not any(isinstance(p, Shard) for p in (*rule.inputs, rule.output, *rule.rest)), str(rule)


def test_every_operator_with_rules_has_a_case() -> None:
    """The table's own names, so that no family can be extended without a proof."""
    proved = set()
    for case in CASES:
        packet = case.target._schema.name.removeprefix("aten::")
        proved |= {packet, f"{packet}.{case.target._overloadname}"}
    assert set(families_by_name()) - proved == UNINITIALISED


def test_unknown_operator_runs_replicated() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(4, 8, device="meta")
    node = graph.call_function(torch.ops.aten.histc.default, (x, 4))
    node.meta["val"] = torch.empty(4, device="meta")
    assert not has_rules(node.target)
    assert [str(rule) for rule in strategies(node, 2)] == ["replicate -> replicate"]
