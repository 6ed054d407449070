"""Times of a model's block classes: the program that a stage runs for each, whole or a rank's share of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from autopar.capture.class_key import structure_of
from autopar.capture.model_graph import Block, BlockInput, InputKind, ModelGraph
from autopar.hardware.blocks import Slowdown
from autopar.lower.axis import TensorAxis
from autopar.plan.decisions import Precision
from autopar.profile.lone_axis import LoneAxis
from autopar.profile.spread import Spread, mean_of, median_of
from autopar.profile.stopwatch import Stopwatch, Task
from autopar.runtime.routes import lowered_program
from autopar.sharding.propagation import BlockSharding
from autopar.units import MiB

# Blocks of one class that run in turn, and bytes of their parameters, beyond which more would change nothing.
_MOST_COPIES = 4
_COPIES_BYTES = 64 * MiB
# Of the parameters of a block whose update is timed.
_MOST_UPDATED_BYTES = 256 * MiB


@dataclass(frozen=True, slots=True)
class BlockToTime:
    """A block class at one micro-batch.

    Attributes:
        block: one of the class.
        graph: that it belongs to.
        batch: a micro-batch of the user's, by key.
        sharding: how a rank of the tensor axis runs it; None: whole.
    """

    block: Block
    graph: ModelGraph
    batch: dict[str, Tensor]
    precision: Precision
    sharding: BlockSharding | None = None

    @property
    def degree(self) -> int:
        """Ranks that the block is divided among."""
        return self.sharding.degree if self.sharding is not None else 1


@dataclass(frozen=True, slots=True)
class BlockTimes:
    """Seconds of one micro-batch.

    Attributes:
        name: of a block of the class.
        backward: of the backward pass alone.
        degree: ranks that the block is divided among.
        slowdown: how much slower than thought divided operators are; None of whole blocks.
        update: of AdamW on the block's parameters, with the gradients that a backward pass made: what these
            are matters (square roots of rows that no sample has touched took eight times as long on an EPYC
            with AVX-512, 2026-11-22). None of sharded and of huge blocks, of those without parameters, and on
            GPUs.
    """

    class_key: str
    precision: Precision
    name: str
    forward: Spread
    backward: Spread
    degree: int = 1
    slowdown: Slowdown | None = None
    update: Spread | None = None


def classes_of(graph: ModelGraph) -> Iterator[Block]:
    """One block of each class that computes something, in the order of the chain."""
    seen: set[str] = set()
    for block in graph.blocks:
        has_calls = any(node.op == "call_function" for node in block.graph.nodes)
        if has_calls and block.class_key not in seen:
            seen.add(block.class_key)
            yield block


def measure_blocks(
    stopwatch: Stopwatch, blocks: Sequence[BlockToTime], axes: Mapping[int, TensorAxis]
) -> tuple[BlockTimes, ...]:
    """Times block classes of one graph, on all ranks at once.

    Args:
        axes: by degree, those on which sharded blocks run with their collectives; others run without.
    """
    torch.manual_seed(0)
    if stopwatch.device.type == "cpu":
        return _in_turn(stopwatch, blocks, axes)
    return tuple(_alone(stopwatch, item) for item in blocks)


def _in_turn(
    stopwatch: Stopwatch, blocks: Sequence[BlockToTime], axes: Mapping[int, TensorAxis]
) -> tuple[BlockTimes, ...]:
    """All blocks run forward one after the other, and then backward from the last to the first, as they do in
    a step: what a block reads was last used a step ago, and has left the caches where they are small.
    """
    runs = [
        BlockRun(item, stopwatch.device, axes.get(item.degree))
        for item in blocks
        for _ in range(_num_copies(item))
    ]
    ahead = [Task(f"forward {i}", run.forward, run.is_alone) for i, run in enumerate(runs)]
    back = [Task(f"backward {i}", run.backward, run.is_alone) for i, run in enumerate(runs)]
    updates = {
        i: Task(f"update {i}", update)
        for i, run in enumerate(runs)
        if run.item.sharding is None and (update := run.update()) is not None
    }
    seconds = stopwatch.run_in_order(_label(blocks[0]), [*ahead, *reversed(back), *updates.values()])
    found = []
    for item in blocks:
        own = [i for i, run in enumerate(runs) if run.item is item]
        forward = mean_of([seconds[ahead[i].name] for i in own])
        backward = mean_of([seconds[back[i].name] for i in own])
        updated = [seconds[updates[i].name] for i in own if i in updates]
        times = _times(item, forward, backward)
        found.append(replace(times, update=mean_of(updated) if updated else None))
    return tuple(found)


def _alone(stopwatch: Stopwatch, item: BlockToTime) -> BlockTimes:
    """One block again and again: the host runs ahead of its device, as in a step."""
    run = BlockRun(item, stopwatch.device)

    def both() -> None:
        run.forward()
        run.backward()

    tasks = [Task("forward", run.forward), Task("forward and backward", both)]
    seconds = stopwatch.run(_label(item), tasks)
    ahead, whole = seconds["forward"], seconds["forward and backward"]
    backward = Spread(
        max(whole.median_s - ahead.median_s, 0.05 * whole.median_s),
        max(whole.low_s - ahead.low_s, 0.0),
        max(whole.high_s - ahead.high_s, 0.0),
        whole.num_repetitions,
    )
    return _times(item, ahead, backward)


def _times(item: BlockToTime, forward: Spread, backward: Spread) -> BlockTimes:
    return BlockTimes(item.block.class_key, item.precision, item.block.name, forward, backward, item.degree)


def _label(item: BlockToTime) -> str:
    divided = f", divided by {item.degree}" if item.degree > 1 else ""
    return f"block {item.block.name} at micro-batch {item.graph.micro_batch}{divided}"


def _num_copies(item: BlockToTime) -> int:
    """How many blocks of a class run: what the model has, as far as it matters for the caches."""
    placeholders = {node.name: node for node in item.block.graph.nodes if node.op == "placeholder"}
    num_bytes: int = sum(
        placeholders[entry.placeholder].meta["val"].nbytes
        for entry in item.block.inputs
        if entry.kind is InputKind.PARAMETER
    )
    count = sum(block.class_key == item.block.class_key for block in item.graph.blocks)
    return max(1, min(count, _MOST_COPIES, _COPIES_BYTES // max(1, num_bytes)))


def with_common_updates(times: Sequence[BlockTimes]) -> tuple[BlockTimes, ...]:
    """With the median update of all micro-batches of a class: it comes after all of a step, and is the same
    however these are cut.
    """
    found: dict[str, list[Spread]] = {}
    for one in times:
        if one.update is not None:
            found.setdefault(structure_of(one.class_key), []).append(one.update)
    return tuple(
        one if one.update is None else replace(one, update=median_of(found[structure_of(one.class_key)]))
        for one in times
    )


class BlockRun:
    """The program of a block with inputs of its own, run forward and then backward.

    Args:
        axis: that a sharded block communicates on; None: it does not.

    Attributes:
        is_alone: it waits for no other rank.
    """

    def __init__(self, item: BlockToTime, device: torch.device, axis: TensorAxis | None = None) -> None:
        self.item = item
        self.is_alone = item.sharding is None or axis is None
        self._axis: list[TensorAxis] = []
        if item.sharding is None:
            self._module = fx.GraphModule(torch.nn.Module(), item.block.graph)
        else:
            self._module = lowered_program(item.block, item.sharding, device)
            self._axis.append(axis or LoneAxis(item.degree))
        # A lowered program may name its inputs otherwise; they come in the same order, behind the axis.
        placeholders = [node for node in self._module.graph.nodes if node.op == "placeholder"]
        given = placeholders[len(self._axis) :]
        self._arguments = [
            _argument(entry, node.meta["val"], item, device)
            for entry, node in zip(item.block.inputs, given, strict=True)
        ]
        self._received = [
            tensor
            for entry, tensor in zip(item.block.inputs, self._arguments, strict=True)
            if entry.kind is InputKind.ACTIVATION and tensor.requires_grad
        ]
        self._roots: list[Tensor] = []
        self._seeds: list[Tensor] = []

    @property
    def gradients(self) -> list[Tensor | None]:
        """Of all that the program was given."""
        return [tensor.grad for tensor in self._arguments]

    def forward(self) -> None:
        """Keeps what the backward pass needs."""
        self._roots = []
        for tensor in self._received:  # a micro-batch brings its own; gradients of parameters add up
            tensor.grad = None
        results = self._module(*self._axis, *self._arguments)
        self._roots = [value for value in results if isinstance(value, Tensor) and value.requires_grad]
        if not self._seeds:
            self._seeds = [torch.ones_like(v) if v.dim() == 0 else torch.randn_like(v) for v in self._roots]

    def backward(self) -> None:
        """Of the forward pass before it."""
        if self._roots:
            torch.autograd.backward(self._roots, self._seeds)
        self._roots = []

    def update(self) -> Callable[[], object] | None:
        """One of AdamW on the parameters that have gradients by then, without changing them; None where the
        block has none to train, or so many that their moments are not worth the memory.
        """
        trained = [
            tensor
            for entry, tensor in zip(self.item.block.inputs, self._arguments, strict=True)
            if entry.kind is InputKind.PARAMETER and tensor.requires_grad
        ]
        num_bytes = sum(tensor.nbytes for tensor in trained)
        return torch.optim.AdamW(trained, lr=0.0).step if 0 < num_bytes <= _MOST_UPDATED_BYTES else None


def _argument(entry: BlockInput, value: Tensor, item: BlockToTime, device: torch.device) -> Tensor:
    shape, dtype = tuple(value.shape), value.dtype
    if entry.kind is InputKind.CONSTANT:
        return _piece(item.graph.constants[entry.source].to(device), shape)
    if entry.kind is InputKind.BATCH:
        return _piece(item.batch[entry.source].to(device=device, dtype=dtype), shape)
    if entry.kind is InputKind.BUFFER:
        return torch.ones(shape, dtype=dtype, device=device)
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype, device=device)
    # Small weights keep activations finite: arithmetic with infinities and denormals has other speeds.
    scale = 0.02 if entry.kind is InputKind.PARAMETER else 1.0
    frozen = entry.kind is InputKind.PARAMETER and not item.graph.parameters[entry.source].requires_grad
    return (torch.randn(shape, device=device) * scale).to(dtype).requires_grad_(not frozen)


def _piece(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The first rank's part of a value."""
    return value[tuple(slice(size) for size in shape)].contiguous() if value.shape != shape else value
