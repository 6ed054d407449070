"""Bytes under recomputation against what stays alive when the lowered block runs under a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from autopar.capture.capture import capture
from autopar.capture.model_graph import Block, InputKind, ModelGraph
from autopar.capture.target import source_from_functions
from autopar.lower.block import LoweredBlock, lower_block
from autopar.lower.keeping import KeepingAxis, keep_results
from autopar.sharding.boundary import block_boundary
from autopar.sharding.placement import Placement, Shard
from autopar.sharding.propagation import propagate
from tests.cost.layers import captured, megatron, named
from tests.cost.program_memory import block_memory, input_kinds


class EchoAxis:
    """An axis on which the other ranks say what this one says: real tensors without other processes."""

    def __init__(self, size: int) -> None:
        self.rank, self.size = 0, size

    def all_reduce(self, tensor: Tensor) -> Tensor:
        return tensor * self.size

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        return tensor.clone()

    def all_gather(self, tensor: Tensor) -> Tensor:
        return torch.stack([tensor] * self.size)

    def begin_all_gather(self, tensor: Tensor) -> Callable[[], Tensor]:
        return lambda: self.all_gather(tensor)

    def reduce_scatter(self, pieces: Tensor) -> Tensor:
        return pieces[0] * self.size

    def all_to_all(self, pieces: Tensor) -> Tensor:
        return torch.stack([pieces[0]] * self.size)

    def own_stream(self, device: torch.device) -> AbstractContextManager[None]:
        return nullcontext()


class Births(TorchDispatchMode):
    """Every storage that an operator returns, held weakly."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                reference = StorageWeakRef(value.untyped_storage())
                self.storages[reference.cdata] = (reference, value.untyped_storage().nbytes())
        return result

    def alive_bytes(self, but: set[int]) -> int:
        return sum(size for ref, size in self.storages.values() if not ref.expired() and ref.cdata not in but)


def real_inputs(block: Block, lowered: LoweredBlock) -> dict[str, Tensor]:
    kinds = input_kinds(block, lowered)
    inputs = {}
    for node in lowered.graph.graph.nodes:
        if node.op == "placeholder" and node.name in kinds:
            value = node.meta["val"]
            shape = tuple(value.shape)
            differentiable = kinds[node.name] in (InputKind.PARAMETER, InputKind.ACTIVATION)
            inputs[node.name] = (
                torch.rand(shape, dtype=value.dtype).requires_grad_(differentiable)
                if value.is_floating_point()
                else torch.zeros(shape, dtype=value.dtype)
            )
    return inputs


def held_bytes(block: Block, lowered: LoweredBlock, *, selective: bool) -> int:
    """Activations handed in, and what the program makes and a checkpoint holds until the backward pass."""
    inputs, births = real_inputs(block, lowered), Births()
    axis = KeepingAxis(EchoAxis(lowered.sharding.degree))  # type: ignore[arg-type]
    program = keep_results(lowered.graph) if selective else lowered.graph
    kinds = input_kinds(block, lowered)

    def forward(*values: Tensor) -> tuple[Tensor, ...]:
        with axis.run():
            found: tuple[Tensor, ...] = program(axis, *values)
        return found

    with births:
        results = checkpoint(forward, *inputs.values(), use_reentrant=False, preserve_rng_state=False)
        graph_of_gradients = [result.grad_fn for result in results if result.grad_fn is not None]
        del results
    handed_in = {StorageWeakRef(value.untyped_storage()).cdata for value in inputs.values()}
    alive_bytes = births.alive_bytes(handed_in)
    assert graph_of_gradients
    activations = (t for name, t in inputs.items() if kinds[name] is InputKind.ACTIVATION)
    return alive_bytes + sum(t.untyped_storage().nbytes() for t in activations)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.second = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x)).mean((2, 3)))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 12)
        self.a, self.b, self.c = nn.Linear(12, 32), nn.Linear(12, 32, bias=False), nn.Linear(32, 4)
        self.norm = nn.LayerNorm(12)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.table(x) @ self.a.weight.t()[:, :12])
        return self.c(F.silu(self.a(h)) * self.b(h)).mean(1)


def small(build: Callable[[], nn.Module], example: Callable[[int], Tensor]) -> ModelGraph:
    def batch(batch_size: int) -> dict[str, Tensor]:
        return {"x": example(batch_size), "y": torch.randint(0, 4, (batch_size,))}

    source = source_from_functions(build, batch, lambda out, batch: F.cross_entropy(out, batch["y"]))
    return capture(source).at(4)


MODELS = {
    "convolutions": lambda: small(Convolutions, lambda n: torch.randn(n, 3, 14, 14)),
    "gated": lambda: small(Gated, lambda n: torch.randint(0, 16, (n, 6))),
    "transformer": lambda: captured(2, 64, 4, 32).at(2),
    "fused transformer": lambda: captured(2, 64, 4, 32, fused=True).at(2),
}


@pytest.mark.parametrize("name", MODELS)
def test_whole_blocks_hold_what_is_predicted(name: str) -> None:
    graph = MODELS[name]()
    for block in graph.blocks:
        lowered = lower_block(block, propagate(block, 1, {}, {}, ()))
        memory = block_memory(block, lowered)
        assert memory.selective_bytes == held_bytes(block, lowered, selective=True), block.name
        assert memory.input_bytes == held_bytes(block, lowered, selective=False), block.name


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("word", ["replicate", "sequence", "batch"])
def test_sharded_layers_hold_what_is_predicted(word: str, fused: bool) -> None:
    graph = captured(2, 64, 4, 32, fused=fused).at(2)
    block = named(graph, "blocks.0")
    lowered = lower_block(block, megatron(graph, block, 2, word))
    memory = block_memory(block, lowered)
    assert memory.selective_bytes == held_bytes(block, lowered, selective=True)
    assert memory.input_bytes == held_bytes(block, lowered, selective=False)
    assert memory.input_bytes < memory.selective_bytes < memory.saved_bytes


def test_a_sharded_table_and_a_loss_over_the_vocabulary_hold_what_is_predicted() -> None:
    graph = captured(2, 64, 4, 32, 4096).at(2)
    for name, dim in (("wte", 0), ("head", 0), ("loss", None)):
        block = named(graph, name)
        placements: dict[str, Placement] = {
            item.source: Shard(dim)
            for item in block.inputs
            if item.kind is InputKind.PARAMETER and dim is not None
        }
        words = {"wte": ("replicate", "replicate"), "head": ("replicate", "shard(2)")}
        inputs, outputs = block_boundary(graph, block, *words.get(name, ("shard(2)", "replicate")), 2)
        lowered = lower_block(block, propagate(block, 2, placements, inputs, outputs))
        memory = block_memory(block, lowered)
        assert memory.selective_bytes == held_bytes(block, lowered, selective=True), name
