"""Selective recomputation of a lowered block: what is kept, that nothing kept runs twice, equal gradients."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from autopar.lower.block import LoweredBlock, lower_block
from autopar.lower.keeping import KeepingAxis, keep_results
from autopar.lower.resolve import resolve
from autopar.lower.selective import keeps_result, kept_nodes
from tests.lower.models import MODELS, load, plan_for
from tests.lower.ranks import ThreadedAxis, run_on_ranks


def lowered(model: str, block: str, degree: int, words: dict[str, str] | None = None) -> LoweredBlock:
    _, graph = load(model)
    tensor = {**MODELS[model].vocab, **MODELS[model].tensor} if degree > 1 else {}
    decisions = resolve(plan_for(graph, tensor, degree, words), graph).blocks
    found = next(d for d in decisions if d.block.name == block)
    return lower_block(found.block, found.sharding)


def names(block: LoweredBlock) -> list[str]:
    kept = kept_nodes(block.graph.graph)
    return [
        getattr(node.target, "__name__", str(node.target)).split(".")[0]
        for node in block.graph.graph.nodes
        if node in kept
    ]


def test_products_attention_and_collectives_are_kept() -> None:
    attention = ["linear", "scaled_dot_product_attention"]
    assert names(lowered("gpt", "blocks.0", 1)) == [*attention, "linear", "linear", "linear"]


def test_of_summands_the_sum_is_kept_and_of_gathered_inputs_the_shard() -> None:
    attention = ["linear", "scaled_dot_product_attention"]
    whole = lowered("gpt", "blocks.0", 2)
    assert names(whole) == [*attention, "all_reduce", "linear", "all_reduce"]
    shards = lowered("gpt", "blocks.0", 2, {"*": "sequence"})
    assert names(shards) == [*attention, "reduce_scatter", "linear", "reduce_scatter"]


def test_products_of_two_activations_are_not_kept() -> None:
    graph = fx.Graph()
    scores, values, weight = (graph.placeholder(name) for name in ("scores", "values", "weight"))
    scores.meta["val"] = values.meta["val"] = torch.empty(2, 3, 3)
    weight.meta["val"] = torch.empty(3, 3)
    unfused = graph.call_function(torch.ops.aten.matmul.default, (scores, values))
    product = graph.call_function(torch.ops.aten.matmul.default, (scores, weight))
    graph.output((unfused, product))
    assert kept_nodes(graph) == {product}


def test_what_is_written_to_is_not_kept() -> None:
    graph = fx.Graph()
    tensor = graph.placeholder("tensor")
    written = graph.call_function(torch.ops.aten.linear.default, (tensor, tensor))
    graph.call_function(torch.ops.aten.relu_.default, (written,))
    graph.output((written,))
    assert keeps_result(written) and not kept_nodes(graph)


def test_what_draws_random_numbers_is_computed_again() -> None:
    graph = fx.Graph()
    query = graph.placeholder("query")
    query.meta["val"] = torch.empty(1, 1, 2, 2)
    attend = torch.ops.aten.scaled_dot_product_attention.default
    dry = graph.call_function(attend, (query, query, query))
    wet = graph.call_function(attend, (query, query, query, None, 0.1))
    graph.output((dry, wet))
    assert kept_nodes(graph) == {dry}


class Operators(TorchDispatchMode):
    """Counts kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        is_shape = any(isinstance(a, Tensor) and a.device.type == "meta" for a in args)
        self.counts[func._schema.name] += not is_shape
        return func(*args, **(kwargs or {}))


class CountingAxis(ThreadedAxis):
    """Counts all-reduces and all-gathers."""

    num_calls = 0

    def all_reduce(self, tensor: Tensor) -> Tensor:
        self.num_calls += 1
        return super().all_reduce(tensor)

    def all_gather(self, tensor: Tensor) -> Tensor:
        self.num_calls += 1
        return super().all_gather(tensor)


def run(block: LoweredBlock, axis: ThreadedAxis, recompute: str) -> tuple[list[Tensor], Counter[str], int]:
    """Gradients of all inputs, kernels and collectives of one forward and backward."""
    counting = CountingAxis(axis.meeting, axis.rank)
    draw = torch.Generator().manual_seed(0)
    inputs = []
    for node in list(block.graph.graph.nodes)[1:]:
        if node.op == "placeholder":
            value = node.meta["val"]
            shape = tuple(value.shape)
            inputs.append(
                torch.rand(shape, dtype=value.dtype, generator=draw).requires_grad_()
                if value.is_floating_point()
                else torch.randint(0, 4, shape, generator=draw)
            )
    with Operators() as operators:
        if recompute == "none":
            results = block.graph(counting, *inputs)
        else:
            keeping = KeepingAxis(counting)
            program = keep_results(block.graph) if recompute == "selective" else block.graph

            def forward(*values: Tensor) -> tuple[Tensor, ...]:
                with keeping.run():
                    found: tuple[Tensor, ...] = program(keeping, *values)
                return found

            results = checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)
        sum((value * torch.arange(value.shape[-1])).sum() for value in results).backward()
    return [x.grad for x in inputs if x.grad is not None], operators.counts, counting.num_calls


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("words", [{"*": "replicate"}, {"*": "sequence"}])
def test_nothing_kept_runs_twice_and_gradients_are_equal(degree: int, words: dict[str, str]) -> None:
    block = lowered("gpt", "blocks.0", degree, words if degree > 1 else None)
    plain, full, selective = (
        run_on_ranks(degree, lambda axis, word=word: run(block, axis, word))[0]
        for word in ("none", "full", "selective")
    )
    for word in (full, selective):
        assert all(torch.equal(a, b) for a, b in zip(word[0], plain[0], strict=True))
    product, attention = "aten::addmm", "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert selective[1][product] == plain[1][product] and selective[1][attention] == plain[1][attention]
    assert full[1][attention] == 2 * plain[1][attention]
    assert selective[1]["aten::native_layer_norm"] == 2 * plain[1]["aten::native_layer_norm"]
    assert selective[2] == plain[2] and (full[2] > plain[2]) == (degree > 1)
