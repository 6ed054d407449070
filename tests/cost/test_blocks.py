"""Cost of blocks: recompute, sharding, readings shared by a class, and a published layer time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autopar.capture.model_graph import InputKind
from autopar.cost.blocks import Readings, block_choice, model_flops, sharding_signature
from autopar.cost.choice import BlockChoice
from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import Cluster, make_cluster
from autopar.plan.decisions import Recompute
from tests.cost.layers import captured, megatron, named


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return make_cluster(load_device("a100-sxm-80gb"))


def layer(
    cluster: Cluster,
    degree: int = 1,
    recompute: Recompute = Recompute.NONE,
    word: str = "replicate",
    sizes: tuple[int, int, int, int] = (64, 4, 32, 2),
) -> BlockChoice:
    hidden, heads, seq, batch = sizes
    graph = captured(2, hidden, heads, seq).at(batch)
    block = named(graph, "blocks.0")
    return block_choice(block, megatron(graph, block, degree, word), recompute, cluster, batch)


def test_full_recompute_trades_memory_for_a_second_forward(cluster: Cluster) -> None:
    none, full = layer(cluster, 2), layer(cluster, 2, Recompute.FULL)
    assert full.saved_bytes == 2 * 2 * 32 * 64  # the input alone, which autograd keeps as well
    assert full.transient_bytes == none.transient_bytes + none.saved_bytes - full.saved_bytes
    assert full.backward_compute_s == pytest.approx(none.backward_compute_s + none.forward_compute_s)
    assert full.backward_comm_s == pytest.approx(none.backward_comm_s + none.forward_comm_s)
    assert (full.forward_s, full.model_flops) == (none.forward_s, none.model_flops)


@pytest.mark.parametrize("word", ["replicate", "sequence"])
def test_selective_recompute_runs_neither_products_nor_collectives_again(cluster: Cluster, word: str) -> None:
    sizes = (1024, 16, 512, 4)
    none, selective, full = (
        layer(cluster, 2, recompute, word, sizes)
        for recompute in (Recompute.NONE, Recompute.SELECTIVE, Recompute.FULL)
    )
    assert selective.backward_comm_s == none.backward_comm_s
    again_s = selective.backward_compute_s - none.backward_compute_s
    # All but the four linear layers, whose forward passes take well over a third.
    assert 0 < again_s < 0.65 * none.forward_compute_s
    assert full.saved_bytes < selective.saved_bytes < none.saved_bytes
    assert none.transient_bytes < selective.transient_bytes < full.transient_bytes


@pytest.mark.parametrize("recompute", list(Recompute))
def test_gradients_of_weights_are_a_good_third_of_a_backward_pass(
    cluster: Cluster, recompute: Recompute
) -> None:
    sizes = (8192, 64, 512, 4)
    choice, plain = layer(cluster, 8, recompute, "sequence", sizes), layer(cluster, 8, sizes=sizes)
    # Linear layers have as many FLOPs for weights as for inputs; attention and norms have none to speak of.
    assert 0.35 < choice.backward_weight_s / plain.backward_compute_s < 0.5
    assert choice.backward_weight_s == pytest.approx(plain.backward_weight_s, rel=0.02)


def test_model_flops_are_those_of_the_whole_layer(cluster: Cluster) -> None:
    # Korthikanti et al. 2022, appendix A: 24 b s h^2 + 4 b s^2 h forward.
    b, s, h = 2, 32, 64
    expected = 24 * b * s * h * h + 4 * b * s * s * h
    assert layer(cluster).model_flops == layer(cluster, 4).model_flops == expected


def test_parameter_shares_divide_what_is_sharded(cluster: Cluster) -> None:
    shares = {p.name: p for p in layer(cluster, 4).parameters}
    assert shares["blocks.0.attn.qkv.weight"].num_elements == 3 * 64 * 64 // 4
    assert shares["blocks.0.attn.qkv.weight"].placement == "shard(0, 3)"
    assert shares["blocks.0.out.weight"].num_elements == 4 * 64 * 64 // 4
    assert shares["blocks.0.out.bias"].num_elements == 64
    assert all(p.trainable for p in shares.values())


def test_frozen_parameters_are_marked(cluster: Cluster) -> None:
    graph = captured(2, 64, 4, 32).at(2)
    block = named(graph, "blocks.0")
    names = frozenset(i.source for i in block.inputs if i.kind is InputKind.PARAMETER and "ln" in i.source)
    choice = block_choice(block, megatron(graph, block, 1), Recompute.NONE, cluster, 2, frozen=names)
    assert {p.name for p in choice.parameters if not p.trainable} == names


@pytest.mark.parametrize("degree", [1, 8])
def test_frozen_parameters_take_no_product_of_the_backward_pass(cluster: Cluster, degree: int) -> None:
    graph = captured(2, 8192, 64, 512).at(4)
    block = named(graph, "blocks.0")
    readings = Readings(cluster)

    def choice(frozen: frozenset[str]) -> BlockChoice:
        return block_choice(
            block,
            megatron(graph, block, degree),
            Recompute.NONE,
            cluster,
            4,
            frozen=frozen,
            readings=readings,
        )

    parameters = frozenset(i.source for i in block.inputs if i.kind is InputKind.PARAMETER)
    plain, frozen = choice(frozenset()), choice(parameters)
    assert frozen.backward_weight_s == 0 < plain.backward_weight_s
    assert frozen.backward_compute_s == pytest.approx(
        plain.backward_compute_s - plain.backward_weight_s, rel=1e-6
    )
    assert frozen.saved_bytes < plain.saved_bytes
    assert frozen.forward_s == plain.forward_s
    assert choice(frozenset()) == plain


def test_a_reading_serves_the_whole_class_and_no_other_sharding(cluster: Cluster) -> None:
    graph = captured(2, 64, 4, 32).at(2)
    first, second = named(graph, "blocks.0"), named(graph, "blocks.1")
    readings = Readings(cluster)
    one = readings.of(first, megatron(graph, first, 2), 2)
    assert readings.of(second, megatron(graph, second, 2), 2) is one
    assert readings.of(first, megatron(graph, first, 4), 2) is not one
    assert readings.of(first, megatron(graph, first, 2, "sequence"), 2) is not one
    assert len(readings.made) == 3
    signatures = {sharding_signature(b, megatron(graph, b, 2)) for b in (first, second)}
    assert len(signatures) == 1


def test_small_blocks_wait_for_the_host(cluster: Cluster) -> None:
    choice = layer(cluster)
    kernels = choice.forward_compute_s / cluster.device.dispatch_s
    assert kernels == pytest.approx(round(kernels))
    assert 12 <= kernels <= 25


@pytest.mark.parametrize(
    ("word", "forward_ms", "backward_ms"), [("replicate", 7.7, 11.9), ("sequence", 7.2, 11.8)]
)
def test_a_layer_of_22b_takes_what_was_measured(
    cluster: Cluster, word: str, forward_ms: float, backward_ms: float
) -> None:
    # Korthikanti et al. 2022, table 4: 22B, tensor degree 8, micro-batch 4, fp16, A100 80 GB. Megatron's
    # fused kernels reach more of the memory's bandwidth than eager ones (benchmarks/published/software.yaml).
    fused = replace(cluster, device=replace(cluster.device, memory_efficiency=0.78))
    choice = layer(fused, 8, word=word, sizes=(6144, 64, 2048, 4))
    assert choice.forward_s * 1e3 == pytest.approx(forward_ms, rel=0.15)
    assert choice.backward_s * 1e3 == pytest.approx(backward_ms, rel=0.2)


def test_flops_of_the_whole_model_are_summed_over_blocks() -> None:
    graph = captured(2, 64, 4, 32, 512).at(2)
    b, s, h, vocab = 2, 32, 64, 512
    layer_flops = 24 * b * s * h * h + 4 * b * s * s * h
    assert sum(model_flops(block) for block in graph.blocks) == 2 * layer_flops + 2 * b * s * h * vocab
