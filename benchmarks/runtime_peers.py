"""The hand-written peers of ``runtime.py``: what an expert writes with PyTorch's own parts.

Each maker returns a function that trains one step on this rank's share of the batch, and the optimiser's
parameters. Micro-batches, splits and what is sharded are those of the plan on the other side.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    loss_parallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

Batch = Mapping[str, Tensor]
Loss = Callable[[Tensor, dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Peer:
    """A hand-written training step.

    Attributes:
        step: forward and backward of this rank's share; gradients are complete afterwards.
        parameters: of this rank, for the optimiser.
        data_rank: which share this rank trains on.
        data_size: number of shares.
    """

    step: Callable[[Batch], None]
    parameters: list[nn.Parameter]
    data_rank: int
    data_size: int


def single(model: nn.Module, loss: Loss, compiles: bool = False) -> Peer:
    """The eager module, or ``torch.compile`` of it."""
    run = torch.compile(model) if compiles else model
    return _plain(run, model, loss, 0, 1)


def ddp(model: nn.Module, loss: Loss) -> Peer:
    """DistributedDataParallel over all ranks."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    return _plain(DistributedDataParallel(model), model, loss, mesh.get_rank(), mesh.size())


def fsdp2(model: nn.Module, loss: Loss) -> Peer:
    """``fully_shard`` of every block and of the rest, resharded after forward."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    _fully_shard(model, mesh)
    return _plain(model, model, loss, mesh.get_rank(), mesh.size())


def tensor(model: nn.Module, loss: Loss) -> Peer:
    """``parallelize_module`` by column and row, vocabulary and loss included."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    parallelize_module(model, mesh, _tensor_plan(splits_vocabulary=True))
    return _plain(model, model, loss, 0, 1, is_loss_parallel=True)


def data_tensor(model: nn.Module, loss: Loss) -> Peer:
    """``parallelize_module`` inside, ``fully_shard`` outside."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(model, mesh["tensor"], _tensor_plan(splits_vocabulary=True))
    _fully_shard(model, mesh["data"])
    return _plain(model, model, loss, mesh["data"].get_local_rank(), 2, is_loss_parallel=True)


def pipeline(model: nn.Module, loss: Loss, batch: Batch, num_micro_batches: int) -> Peer:
    """1F1B of ``torch.distributed.pipelining`` over all ranks."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    return _pipelined(stage_of(model, mesh.get_rank(), mesh.size()), mesh, loss, batch, num_micro_batches)


def pipeline_data(model: nn.Module, loss: Loss, batch: Batch, num_micro_batches: int) -> Peer:
    """1F1B of stages that are replicated by DistributedDataParallel."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pipeline", "data"))
    stage = stage_of(model, mesh["pipeline"].get_local_rank(), 2)
    wrapped = DistributedDataParallel(stage, process_group=mesh["data"].get_group())
    rank = mesh["data"].get_local_rank()
    return _pipelined(wrapped, mesh["pipeline"], loss, batch, num_micro_batches, rank, 2)


def pipeline_tensor(model: nn.Module, loss: Loss, batch: Batch, num_micro_batches: int) -> Peer:
    """1F1B of stages whose blocks are split by column and row."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pipeline", "tensor"))
    stage = stage_of(model, mesh["pipeline"].get_local_rank(), 2)
    parallelize_module(stage, mesh["tensor"], _tensor_plan(splits_vocabulary=False))
    return _pipelined(stage, mesh["pipeline"], loss, batch, num_micro_batches)


def stage_of(model: nn.Module, index: int, num_stages: int) -> nn.Module:
    """Equal pieces of the chain of blocks; embeddings with the first, norm and head with the last."""
    stage = copy.copy(model)
    stage._modules = dict(model._modules)
    for container in ("blocks", "stages"):
        if hasattr(model, container):
            blocks = [block for part in getattr(model, container) for block in _chain(part)]
            size = len(blocks) // num_stages
            stage._modules[container] = nn.ModuleList(blocks[index * size : (index + 1) * size])
    if index > 0:
        for name in ("wte", "wpe", "stem"):
            if name in stage._modules:
                stage._modules[name] = nn.Identity() if name == "stem" else None
    if index < num_stages - 1:
        for name in ("ln_f", "lm_head"):
            if name in stage._modules:
                stage._modules[name] = None
        if "head" in stage._modules:
            stage.forward = _without_head.__get__(stage)  # type: ignore[method-assign]
            del stage._modules["head"]
    return stage


def _chain(part: nn.Module) -> list[nn.Module]:
    return list(part) if isinstance(part, nn.Sequential) else [part]


def _without_head(self: nn.Module, x: Tensor) -> Tensor:
    x = self.get_submodule("stem")(x)
    for block in self.get_submodule("stages").children():
        x = block(x)
    return x


def _plain(
    run: Callable[[Tensor], Tensor],
    model: nn.Module,
    loss: Loss,
    rank: int,
    size: int,
    is_loss_parallel: bool = False,
) -> Peer:
    def step(batch: Batch) -> None:
        inputs = next(value for name, value in batch.items() if name != "labels")
        if is_loss_parallel:
            with loss_parallel():
                loss(run(inputs), dict(batch)).backward()
        else:
            loss(run(inputs), dict(batch)).backward()

    return Peer(step, list(model.parameters()), rank, size)


def _fully_shard(model: nn.Module, mesh: DeviceMesh) -> None:
    for part in getattr(model, "blocks", None) or getattr(model, "stages"):  # noqa: B009
        for block in _chain(part):
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _tensor_plan(splits_vocabulary: bool) -> dict[str, ColwiseParallel | RowwiseParallel]:
    column = {f"blocks.*.{name}": ColwiseParallel() for name in ("wq", "wk", "wv", "fc")}
    row = {f"blocks.*.{name}": RowwiseParallel() for name in ("wo", "proj")}
    if not splits_vocabulary:
        return {**column, **row}
    return {
        "wte": RowwiseParallel(input_layouts=Replicate()),
        **column,
        **row,
        "lm_head": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False),
    }


def _pipelined(
    module: nn.Module,
    mesh: DeviceMesh,
    loss: Loss,
    batch: Batch,
    num_micro_batches: int,
    data_rank: int = 0,
    data_size: int = 1,
) -> Peer:
    index, num_stages = mesh.get_local_rank(), mesh.size()
    stage = PipelineStage(module, index, num_stages, torch.device("cpu"), group=mesh.get_group())
    schedule = Schedule1F1B(
        stage, num_micro_batches, loss_fn=lambda output, target: loss(output, {"labels": target})
    )

    def step(batch: Batch) -> None:
        inputs = next(value for name, value in batch.items() if name != "labels")
        given = (inputs,) if index == 0 else ()
        target = {"target": batch["labels"]} if index == num_stages - 1 else {}
        schedule.step(*given, **target)

    return Peer(step, list(module.parameters()), data_rank, data_size)
