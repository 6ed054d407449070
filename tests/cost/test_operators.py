"""Operator times: FLOPs against torch's counter, views against its rule, and the limits of the roofline."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from autopar.capture.model_graph import TensorSpec
from autopar.cost.flops import forward_flops
from autopar.cost.operators import OperatorCost, can_view, operator_name, operator_seconds
from autopar.hardware.catalog import load_device
from autopar.hardware.device import Device

aten = torch.ops.aten


@pytest.fixture(scope="module")
def h100() -> Device:
    return load_device("h100")


def spec(*shape: int, dtype: torch.dtype = torch.bfloat16) -> TensorSpec:
    return TensorSpec(shape, dtype)


def cost(
    device: Device, name: str, inputs: list[TensorSpec], output: TensorSpec, grad: bool = True
) -> OperatorCost:
    return operator_seconds(name, tuple(inputs), (output,), (grad,) * len(inputs), device)


def counted(name: str, *tensors: torch.Tensor, **kwargs: object) -> int:
    with FlopCounterMode(display=False) as counter:
        getattr(F, name, getattr(torch, name, None))(*tensors, **kwargs)  # type: ignore[misc]
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("linear", [(2, 5, 8), (6, 8)]),
        ("matmul", [(3, 4, 5), (3, 5, 7)]),
        ("bmm", [(3, 4, 5), (3, 5, 7)]),
        ("addmm", [(7,), (4, 5), (5, 7)]),
        ("conv2d", [(2, 4, 9, 9), (6, 4, 3, 3)]),
        ("conv1d", [(2, 4, 9), (6, 4, 3)]),
        ("conv_transpose2d", [(2, 4, 5, 5), (4, 6, 3, 3)]),
        ("scaled_dot_product_attention", [(2, 3, 8, 4), (2, 3, 10, 4), (2, 3, 10, 4)]),
    ],
)
def test_flops_are_those_of_torchs_counter(name: str, shapes: list[tuple[int, ...]]) -> None:
    tensors = [torch.empty(shape, device="meta") for shape in shapes]
    result = getattr(F, name, getattr(torch, name, None))(*tensors)  # type: ignore[misc]
    assert forward_flops(name, tuple(shapes), (tuple(result.shape),)) == counted(name, *tensors)


def test_flops_of_an_lstm_are_those_of_its_products() -> None:
    lstm = torch.nn.LSTM(5, 7, num_layers=2, batch_first=True)
    inputs = ((3, 11, 5), (2, 3, 7), (2, 3, 7), *(tuple(p.shape) for p in lstm.parameters()))
    expected = 2 * 3 * 11 * 4 * 7 * (5 + 7 + 7 + 7)
    assert forward_flops("lstm", inputs, ((3, 11, 7),)) == expected


def test_large_products_run_at_the_measured_rate(h100: Device) -> None:
    n = 16384
    result = cost(h100, "linear", [spec(n, n), spec(n, n)], spec(n, n))
    # The best that was measured is 794 TFLOP/s; published runs sustain 1 / 1.16 of it (h100-sxm-80gb.yaml).
    assert result.flops / result.forward_s == pytest.approx(794e12 / 1.16, rel=0.01)
    assert result.backward_s == pytest.approx(2 * result.forward_s, rel=0.01)


def test_skinny_products_are_bound_by_memory(h100: Device) -> None:
    result = cost(h100, "linear", [spec(1, 8192), spec(8192, 8192)], spec(1, 8192))
    moved = 2 * (8192 * 8192 + 2 * 8192)
    assert result.forward_s == pytest.approx(moved / h100.effective_memory_bytes_per_s + 4e-6)


def test_pointwise_is_bound_by_memory_and_small_ones_by_launches(h100: Device) -> None:
    large = cost(h100, "gelu", [spec(4096, 8192)], spec(4096, 8192))
    assert large.forward_s == pytest.approx(2 * 2 * 4096 * 8192 / h100.effective_memory_bytes_per_s + 4e-6)
    assert large.backward_s == pytest.approx(1.5 * (large.forward_s - 4e-6) + 4e-6)
    small = cost(h100, "gelu", [spec(4)], spec(4))
    assert small.forward_s == pytest.approx(4e-6, rel=0.01)


def test_only_what_requires_a_gradient_has_a_backward(h100: Device) -> None:
    x, w, y = spec(512, 1024), spec(2048, 1024), spec(512, 2048)
    both = operator_seconds("linear", (x, w), (y,), (True, True), h100).backward_s
    one, other = (
        operator_seconds("linear", (x, w), (y,), needs, h100).backward_s
        for needs in ((False, True), (True, False))
    )
    assert one > 0 and other > 0
    assert both == pytest.approx(one + other)
    assert operator_seconds("linear", (x, w), (y,), (False, False), h100).backward_s == 0


def test_views_are_free_but_pieces_are_put_together_backwards(h100: Device) -> None:
    assert cost(h100, "transpose", [spec(4, 8)], spec(8, 4)) == OperatorCost(0.0, 0.0, 0)
    piece = operator_seconds("split", (spec(4, 96),), (spec(4, 32),) * 3, (True,), h100)
    assert piece.forward_s == 0
    assert piece.backward_s > 0


def test_causal_attention_halves_the_time_and_keeps_the_flops(h100: Device) -> None:
    q = spec(8, 32, 8192, 128)
    whole, causal = (
        operator_seconds("scaled_dot_product_attention", (q, q, q), (q,), (True,) * 3, h100, is_causal)
        for is_causal in (False, True)
    )
    assert whole.flops == causal.flops == 4 * 8 * 32 * 8192 * 8192 * 128
    assert causal.forward_s == pytest.approx(whole.forward_s / 2, rel=0.01)
    assert whole.flops / whole.forward_s == pytest.approx(0.45 * 989e12, rel=0.01)
    assert 2.5 < whole.backward_s / whole.forward_s < 3.0


def test_looking_up_rows_does_not_read_the_table(h100: Device) -> None:
    indices, table, rows = spec(8, 128, dtype=torch.int64), spec(1_000_000, 1024), spec(8, 128, 1024)
    result = operator_seconds("embedding", (table, indices), (rows,), (True, False), h100)
    assert result.forward_s < 10e-6
    # The dense gradient of the table is written whole.
    assert result.backward_s > 2e9 / 3350e9


def test_unsupported_precision_runs_at_the_rate_of_fp32() -> None:
    t4 = load_device("t4")
    n = 8192
    bf16 = cost(t4, "linear", [spec(n, n), spec(n, n)], spec(n, n))
    fp32 = cost(t4, "linear", [spec(n, n, dtype=torch.float32)] * 2, spec(n, n, dtype=torch.float32))
    fp16 = cost(t4, "linear", [spec(n, n, dtype=torch.float16)] * 2, spec(n, n, dtype=torch.float16))
    assert bf16.forward_s == pytest.approx(fp32.forward_s)
    assert fp16.forward_s < fp32.forward_s / 5


def test_names_of_what_nodes_call() -> None:
    assert operator_name(aten.linear.default) == "linear"
    assert operator_name(aten.split.Tensor) == "split"
    from autopar.lower import collectives, local_operators

    assert operator_name(collectives.split) == "axis.split"
    assert operator_name(local_operators.embedding_vocab) == "embedding_vocab"


def test_can_view_is_torchs_own_rule() -> None:
    rng = random.Random(0)
    outcomes = []
    for _ in range(600):
        tensor = torch.empty([rng.choice([1, 2, 3, 4]) for _ in range(rng.randint(1, 4))])
        if rng.random() < 0.6:
            tensor = tensor.permute(rng.sample(range(tensor.dim()), tensor.dim()))
        if rng.random() < 0.3 and tensor.shape[-1] > 1:
            tensor = tensor[..., :-1]
        if rng.random() < 0.2:
            tensor = tensor.expand(2, *tensor.shape)
        left, shape = tensor.numel(), []
        while left > 1:
            shape.append(rng.choice([d for d in range(1, left + 1) if left % d == 0]))
            left //= shape[-1]
        try:
            tensor.view(shape)
            outcomes.append(True)
        except RuntimeError:
            outcomes.append(False)
        assert can_view(tuple(tensor.shape), tensor.stride(), tuple(shape)) == outcomes[-1]
    assert 100 < sum(outcomes) < 500


def test_short_reductions_are_slower_at_equal_work(h100: Device) -> None:
    long = cost(h100, "linear", [spec(4096, 4096), spec(4096, 4096)], spec(4096, 4096))
    short = cost(h100, "linear", [spec(16384, 256), spec(16384, 256)], spec(16384, 16384))
    assert short.flops == long.flops
    assert short.forward_s > 1.3 * long.forward_s
