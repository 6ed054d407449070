"""What one rank computes: matrix products by size, memory-bound operators by size, and the fixed costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from autopar.profile.spread import Spread, mean_of, scaled
from autopar.profile.stopwatch import Stopwatch, Task
from autopar.units import MiB

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Edges of the cubes that are multiplied, by kind of device: up to where the rate no longer grows.
_EDGES = {
    "cpu": (16, 32, 64, 128, 256, 512, 1024),
    "cuda": (64, 128, 256, 512, 1024, 2048, 4096, 8192),
}
_QUICK_EDGES = {"cpu": (32, 128, 512), "cuda": (128, 512, 2048, 4096)}
# Reduction lengths of products of one size: how much shorter sums cost.
_REDUCTIONS = {"cpu": (16, 256), "cuda": (64, 4096)}
# Bytes that an elementwise operator reads and writes.
_TRAFFIC_BYTES = {
    "cpu": (64 * 1024, 512 * 1024, 4 * MiB, 32 * MiB),
    "cuda": (1 * MiB, 16 * MiB, 128 * MiB, 1024 * MiB),
}
# (batch, heads, sequence, head dim)
_ATTENTION = {"cpu": (2, 4, 256, 64), "cuda": (4, 16, 2048, 128)}
_CHAIN = 32
# Elements of a parameter, and how many such parameters are updated: of all but the smallest, so many that
# their state is in no cache when its turn comes, as that of a whole model is not. The C library maps what is
# larger than 32 MiB anew each time (``runtime.heap``): the sizes before and behind that differ. On a GPU one
# call updates parameters of every size.
_UPDATES = {
    "cpu": ((2**8, 256), (2**14, 256), (2**18, 32), (2**20, 8), (7 * 2**20, 1), (10 * 2**20, 1)),
    "cuda": ((2**26, 1),),
}
_QUICK_UPDATES = {"cpu": ((2**8, 256), (2**20, 8), (7 * 2**20, 1)), "cuda": ((2**26, 1),)}


@dataclass(frozen=True, slots=True)
class ComputeResult:
    """Seconds of one call.

    Attributes:
        products: by precision and cube edge.
        short_product: of a product with a short reduction, its FLOPs and reduction length; and
        long_product: the same FLOPs with a long one.
        streams: of memory-bound operators, by bytes moved.
        updates: of AdamW, by the elements of a parameter; and of how many elements in all.
        operator: of one small operator with a view, forward.
        operator_backward: of its backward.
        attention: fused and causal, forward; with its FLOPs (both triangles).
    """

    products: dict[tuple[str, int], Spread]
    short_product: tuple[Spread, float, int]
    long_product: tuple[Spread, float, int]
    streams: dict[int, Spread]
    updates: dict[int, tuple[Spread, int]]
    operator: Spread
    operator_backward: Spread
    attention: tuple[Spread, float]


def measure_compute(stopwatch: Stopwatch, quick: bool) -> ComputeResult:
    """Measures this rank while all others do the same."""
    device = stopwatch.device
    kind = "cuda" if device.type == "cuda" else "cpu"
    edges = (_QUICK_EDGES if quick else _EDGES)[kind]
    precisions = _precisions(device)
    products = {
        (precision, edge): Task(f"product {precision} {edge}", _product(edge, edge, edge, precision, device))
        for precision in precisions
        for edge in edges
    }
    short, long = _REDUCTIONS[kind]
    rows = 4 * long
    shapes = {"short": (rows, long, short), "long": (rows * short // long, long, long)}
    shaped = {
        name: Task(f"product with a {name} sum", _product(*shape, precisions[0], device))
        for name, shape in shapes.items()
    }
    streams = {
        size: [Task(f"{name} of {size} bytes", work) for name, work in _streams(size, device).items()]
        for size in _TRAFFIC_BYTES[kind]
    }
    attention, attention_flops = _attention(_ATTENTION[kind], precisions[0], device)
    sizes = (_QUICK_UPDATES if quick else _UPDATES)[kind]
    state = torch.ones(4, max(elements * number for elements, number in sizes), device=device)
    updates = {
        elements: (Task(f"update of {elements} elements", _update(elements, number, state)), number)
        for elements, number in sizes
    }
    forward, backward = _chain(device)
    tasks = [
        *products.values(),
        *shaped.values(),
        *(task for group in streams.values() for task in group),
        Task("attention", attention),
        *(task for task, _ in updates.values()),
        Task("operators", forward),
        Task("operators and their backward", backward),
    ]
    found = stopwatch.run("compute", tasks)
    forward_s, both_s = found["operators"], found["operators and their backward"]
    return ComputeResult(
        products={key: found[task.name] for key, task in products.items()},
        short_product=(found[shaped["short"].name], _flops(shapes["short"]), short),
        long_product=(found[shaped["long"].name], _flops(shapes["long"]), long),
        streams={size: mean_of([found[task.name] for task in group]) for size, group in streams.items()},
        updates={
            elements: (found[task.name], elements * number) for elements, (task, number) in updates.items()
        },
        operator=scaled(forward_s, 1 / _CHAIN),
        operator_backward=scaled(_difference(both_s, forward_s), 1 / _CHAIN),
        attention=(found["attention"], attention_flops),
    )


def _precisions(device: torch.device) -> tuple[str, ...]:
    """Those worth measuring, the fastest first: a GPU computes in halves, a CPU does not."""
    if device.type == "cuda":
        return ("bf16", "fp16", "fp32") if torch.cuda.is_bf16_supported() else ("fp16", "fp32")
    return ("fp32",)


def _product(m: int, n: int, k: int, precision: str, device: torch.device) -> Callable[[], object]:
    dtype = _PRECISIONS[precision]
    first = torch.randn(m, k, device=device, dtype=dtype)
    second = torch.randn(n, k, device=device, dtype=dtype)
    return lambda: F.linear(first, second)


def _flops(shape: tuple[int, int, int]) -> float:
    m, n, k = shape
    return 2.0 * m * n * k


def _streams(num_bytes: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """A few operators that models use much, each moving about so many bytes (fp32)."""
    half = torch.randn(num_bytes // 8, device=device)
    third = torch.randn(num_bytes // 12, device=device)
    rows = half[: half.numel() // 256 * 256].view(-1, 256)
    return {
        "addition": lambda: third + third,
        "relu": lambda: F.relu(half),
        "layer norm": lambda: F.layer_norm(rows, (256,)),
        "copy": lambda: half.clone(),
    }


def _attention(
    shape: tuple[int, int, int, int], precision: str, device: torch.device
) -> tuple[Callable[[], object], float]:
    batch, heads, seq, dim = shape
    query = torch.randn(shape, device=device, dtype=_PRECISIONS[precision])
    flops = 4.0 * batch * heads * seq * seq * dim
    return lambda: F.scaled_dot_product_attention(query, query, query, is_causal=True), flops


def _update(num_elements: int, num_parameters: int, state: Tensor) -> Callable[[], object]:
    """AdamW on parameters of one size, without changing them.

    Args:
        state: memory for values, gradients and both moments.
    """
    pieces = [row.split(num_elements) for row in state[:, : num_elements * num_parameters]]
    parameters = [value.detach().requires_grad_() for value in pieces[0]]
    optimizer = torch.optim.AdamW(parameters, lr=0.0)
    for parameter, gradient, first, second in zip(parameters, *pieces[1:], strict=True):
        parameter.grad = gradient
        moments = {"exp_avg": first, "exp_avg_sq": second}
        optimizer.state[parameter] = {"step": torch.tensor(0.0), **moments}
    return optimizer.step


def _chain(device: torch.device) -> tuple[Callable[[], object], Callable[[], object]]:
    """Small operators one after the other, each behind a view, as programs have them."""
    start = torch.zeros(64, device=device, requires_grad=True)
    other = torch.zeros(64, device=device)

    def forward() -> Tensor:
        value = start
        for _ in range(_CHAIN):
            value = torch.ops.aten.add.Tensor(torch.ops.aten.view.default(value, [64]), other)
        return value

    seed = torch.ones(64, device=device)

    def both() -> None:
        start.grad = None
        torch.autograd.backward([forward()], [seed])

    return forward, both


def _difference(whole: Spread, part: Spread) -> Spread:
    least = 0.1 * whole.median_s
    return Spread(
        max(least, whole.median_s - part.median_s),
        max(least, whole.low_s - part.high_s),
        max(least, whole.high_s - part.low_s),
        whole.num_repetitions,
    )
