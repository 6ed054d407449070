"""Times of a model's block classes: the program that a stage runs for each, whole, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from autopar.capture.model_graph import Block, BlockInput, InputKind, ModelGraph
from autopar.plan.decisions import Precision
from autopar.profile.spread import Spread
from autopar.profile.stopwatch import Stopwatch, Task


@dataclass(frozen=True, slots=True)
class BlockToTime:
    """A block class at one micro-batch.

    Attributes:
        block: one of the class.
        graph: that it belongs to.
        batch: a micro-batch of the user's, by key.
    """

    block: Block
    graph: ModelGraph
    batch: dict[str, Tensor]
    precision: Precision


@dataclass(frozen=True, slots=True)
class BlockTimes:
    """Seconds of one micro-batch.

    Attributes:
        name: of a block of the class.
        backward: of the backward pass alone.
    """

    class_key: str
    precision: Precision
    name: str
    forward: Spread
    backward: Spread


def classes_of(graph: ModelGraph) -> Iterator[Block]:
    """One block of each class that computes something, in the order of the chain."""
    seen: set[str] = set()
    for block in graph.blocks:
        has_calls = any(node.op == "call_function" for node in block.graph.nodes)
        if has_calls and block.class_key not in seen:
            seen.add(block.class_key)
            yield block


def measure_blocks(stopwatch: Stopwatch, blocks: Sequence[BlockToTime]) -> tuple[BlockTimes, ...]:
    """Times block classes one after the other, each on all ranks at once."""
    found = []
    for item in blocks:
        torch.manual_seed(0)
        forward, both = _programs(item, stopwatch.device)
        label = f"block {item.block.name} at micro-batch {item.graph.micro_batch}"
        seconds = stopwatch.run(label, [Task("forward", forward), Task("forward and backward", both)])
        ahead, whole = seconds["forward"], seconds["forward and backward"]
        backward = Spread(
            max(whole.median_s - ahead.median_s, 0.05 * whole.median_s),
            max(whole.low_s - ahead.low_s, 0.0),
            max(whole.high_s - ahead.high_s, 0.0),
            whole.num_repetitions,
        )
        found.append(BlockTimes(item.block.class_key, item.precision, item.block.name, ahead, backward))
    return tuple(found)


def _programs(item: BlockToTime, device: torch.device) -> tuple[Callable[[], object], Callable[[], object]]:
    """Forward alone; forward and backward."""
    module = fx.GraphModule(torch.nn.Module(), item.block.graph)
    placeholders = {node.name: node for node in item.block.graph.nodes if node.op == "placeholder"}
    arguments = [
        _argument(entry, placeholders[entry.placeholder].meta["val"], item, device)
        for entry in item.block.inputs
    ]
    received = [
        tensor
        for entry, tensor in zip(item.block.inputs, arguments, strict=True)
        if entry.kind is InputKind.ACTIVATION and tensor.requires_grad
    ]

    def forward() -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = module(*arguments)
        return result

    outputs = [value for value in forward() if isinstance(value, Tensor) and value.requires_grad]
    seeds = [torch.ones_like(value) if value.dim() == 0 else torch.randn_like(value) for value in outputs]
    del outputs

    def both() -> None:
        for tensor in received:  # a micro-batch brings its own; gradients of parameters add up
            tensor.grad = None
        roots = [value for value in forward() if isinstance(value, Tensor) and value.requires_grad]
        if roots:
            torch.autograd.backward(roots, seeds)

    return forward, both


def _argument(entry: BlockInput, value: Tensor, item: BlockToTime, device: torch.device) -> Tensor:
    shape, dtype = tuple(value.shape), value.dtype
    if entry.kind is InputKind.CONSTANT:
        return item.graph.constants[entry.source].to(device)
    if entry.kind is InputKind.BATCH:
        return item.batch[entry.source].to(device=device, dtype=dtype)
    if entry.kind is InputKind.BUFFER:
        return torch.ones(shape, dtype=dtype, device=device)
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype, device=device)
    # Small weights keep activations finite: arithmetic with infinities and denormals has other speeds.
    scale = 0.02 if entry.kind is InputKind.PARAMETER else 1.0
    frozen = entry.kind is InputKind.PARAMETER and not item.graph.parameters[entry.source].requires_grad
    return (torch.randn(shape, device=device) * scale).to(dtype).requires_grad_(not frozen)
