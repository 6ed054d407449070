"""Memory of blocks against the closed forms of the literature and against what autograd really keeps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autopar.capture.capture import capture
from autopar.capture.target import source_from_functions
from autopar.cost.storages import BlockMemory
from autopar.lower.block import lower_block
from autopar.sharding.placement import REPLICATE
from autopar.sharding.propagation import propagate
from tests.cost.layers import captured, megatron, named
from tests.cost.program_memory import block_memory

HIDDEN, HEADS, SEQ = 64, 4, 32


def layer_memory(degree: int, word: str = "replicate", batch: int = 2, fused: bool = False) -> BlockMemory:
    graph = captured(2, HIDDEN, HEADS, SEQ, fused=fused).at(batch)
    block = named(graph, "blocks.0")
    return block_memory(block, lower_block(block, megatron(graph, block, degree, word)))


def statistics_bytes(batch: int, num_norms: int = 2) -> int:
    """Mean and reciprocal deviation of each row, which the closed forms leave out."""
    return num_norms * 2 * 2 * batch * SEQ


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_a_transformer_layer_saves_what_korthikanti_counts(degree: int) -> None:
    # Korthikanti et al. 2022 (arXiv 2205.05198), equation 2: sbh (10 + 24 / t + 5 a s / (h t)).
    sbh = SEQ * 2 * HIDDEN
    expected = sbh * 10 + sbh * 24 // degree + sbh * 5 * HEADS * SEQ // (HIDDEN * degree)
    assert layer_memory(degree).saved_bytes == expected + statistics_bytes(2)


# Korthikanti et al. 2022, table 3: hidden size, heads, micro-batch; figure 1: GiB of a first stage with
# sequence parallelism and selective recompute; layers; sequences of 2048, 8 tensor ranks. The figure has
# 34 sbh L / t, times 1 + (p - 1) / (p m) where m stages are interleaved.
PUBLISHED = {
    "22B": (6144, 64, 4, 9.5625, 48, 1.0),
    "175B": (12288, 96, 1, 12.3515625, 96, 1 + 7 / 24),
    "530B": (20480, 128, 1, 23.076171875, 105, 1 + 34 / 105),
    "1T": (25600, 160, 1, 26.5625, 128, 1.0),
}


@pytest.mark.parametrize(
    "model", ["22B", *(pytest.param(m, marks=pytest.mark.slow) for m in ("175B", "530B")), "1T"]
)
def test_sequence_parallel_divides_everything(model: str) -> None:
    hidden, heads, batch, published, layers, interleaved = PUBLISHED[model]
    seq, degree = 2048, 8
    graph = captured(2, hidden, heads, seq).at(batch)
    block = named(graph, "blocks.0")
    memory = block_memory(block, lower_block(block, megatron(graph, block, degree, "sequence")))
    sbh = seq * batch * hidden
    linear, scores = 34 * sbh // degree, 5 * heads * seq * seq * batch // degree
    rows = 2 * 2 * 2 * batch * seq // degree
    assert memory.saved_bytes == linear + scores + rows  # equation 3
    assert linear * layers * interleaved / 2**30 == pytest.approx(published, rel=0.01)
    # Selective recompute keeps inputs, products and sums, and computes norms and activation functions again.
    assert memory.selective_bytes == 20 * sbh // degree
    assert memory.input_bytes == memory.output_bytes == 2 * sbh // degree


def test_fused_attention_keeps_rows_not_scores() -> None:
    sbh = SEQ * 2 * HIDDEN
    # Without scores, and with one fp32 number per head and row.
    assert layer_memory(1, fused=True).saved_bytes == 34 * sbh + 4 * 2 * HEADS * SEQ + statistics_bytes(2)


@pytest.mark.parametrize("fused", [False, True])
def test_memory_is_affine_in_the_micro_batch(fused: bool) -> None:
    two, three, five = (layer_memory(2, batch=b, fused=fused) for b in (2, 3, 5))
    step = three.saved_bytes - two.saved_bytes
    assert five.saved_bytes == two.saved_bytes + 3 * step
    assert two.saved_bytes == 2 * step


def test_the_loss_needs_three_tensors_of_the_size_of_the_logits() -> None:
    graph = captured(2, HIDDEN, HEADS, SEQ, 4096).at(2)
    head = graph.blocks[-1]
    memory = block_memory(head, lower_block(head, megatron(graph, head, 1)))
    logits = 2 * SEQ * 4096 * 2
    assert logits <= memory.saved_bytes < 1.1 * logits
    # Beside log-probabilities: zeros of nll, the gradient, and the weight's gradient.
    assert 2 * logits <= memory.backward_transient_bytes < 2 * logits + 3 * 4096 * HIDDEN * 2


def saved_by_autograd(model: nn.Module, batch: dict[str, Tensor]) -> int:
    held: dict[int, torch.UntypedStorage] = {}
    outside = {id(t.untyped_storage()) for t in (*model.parameters(), *model.buffers(), *batch.values())}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in outside:
            held[id(storage)] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        F.cross_entropy(model(batch["x"]), batch["y"])
    return sum(storage.nbytes() for storage in held.values())


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.second = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(inplace=True))
        self.last = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x)).mean((2, 3)))


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 32), nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        x = x + F.silu(self.b(x)) * torch.sigmoid(x)
        return self.c(F.layer_norm(x, (32,)))


@pytest.mark.parametrize(
    ("build", "shape"), [(Convolutions, (3, 14, 14)), (Perceptron, (12,))], ids=["convolutions", "perceptron"]
)
def test_saved_bytes_are_what_the_module_keeps_when_it_runs(
    build: type[nn.Module], shape: tuple[int, ...]
) -> None:
    def example(batch_size: int) -> dict[str, Tensor]:
        return {"x": torch.randn(batch_size, *shape), "y": torch.randint(0, 5, (batch_size,))}

    source = source_from_functions(build, example, lambda out, batch: F.cross_entropy(out, batch["y"]))
    graph = capture(source).at(4)
    read, boundary = 0, 0
    for block in graph.blocks:
        memory = block_memory(
            block, lower_block(block, propagate(block, 1, {}, {}, (REPLICATE,) * len(block.outputs)))
        )
        read += memory.saved_bytes
        boundary += memory.input_bytes
    real = saved_by_autograd(build(), example(4))
    # A value that both its producer and the next block keep is counted in both.
    assert real <= read <= real + boundary
