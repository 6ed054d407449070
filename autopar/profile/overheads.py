"""What a step costs beside its operators: the runtime itself, on a model that computes next to nothing."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from autopar.capture.capture import Capture, capture
from autopar.capture.target import source_from_functions
from autopar.plan.decisions import Mesh, PatternLine, Plan, Precision, ScheduleName
from autopar.profile.spread import Spread
from autopar.profile.stopwatch import Stopwatch, Task
from autopar.runtime.options import Options
from autopar.runtime.parallel import ParallelModel, start

_WIDTH = 8
_FEW, _MANY = 1, 5


@dataclass(frozen=True, slots=True)
class OverheadResult:
    """Seconds of steps of a tiny model, data-parallel over all ranks.

    Attributes:
        few: of a step of one micro-batch.
        many: of a step of ``num_more`` micro-batches more.
    """

    few: Spread
    many: Spread
    num_more: int = _MANY - _FEW


def tiny_capture() -> Capture:
    """The model that is stepped: one small product and its mean."""
    return capture(source_from_functions(_build, _batch, _loss, {}), torch.float32)


def measure_overheads(stopwatch: Stopwatch, captured: Capture, timeout_s: float) -> OverheadResult:
    """Measures this rank; every rank takes part."""
    num_ranks = dist.get_world_size()
    models = [_model(n, num_ranks, captured, stopwatch.device, timeout_s) for n in (_FEW, _MANY)]
    batches = [_batch(n) for n in (_FEW, _MANY)]

    def step(model: ParallelModel, batch: dict[str, Tensor]) -> None:
        model.step(batch)
        for parameter in model.parameters():
            parameter.grad = None

    with redirect_stderr(io.StringIO()):  # every first step compares itself with what was predicted
        for model, batch in zip(models, batches, strict=True):
            step(model, batch)
    # Where ranks share cores, one that waits leaves its core to the others.
    shares = stopwatch.share is not None and stopwatch.share > 1
    tasks = [
        Task(f"step of {n} micro-batches", partial(step, model, batch), computes=shares)
        for n, model, batch in zip((_FEW, _MANY), models, batches, strict=True)
    ]
    try:
        found = stopwatch.run("runtime", tasks)
    finally:
        for model in models:
            model.close()
    few, many = (found[task.name] for task in tasks)
    return OverheadResult(few, many)


def _model(
    num_micro_batches: int, num_ranks: int, captured: Capture, device: torch.device, timeout_s: float
) -> ParallelModel:
    graph = captured.at(1)
    plan = Plan(
        global_batch=num_micro_batches * num_ranks,
        micro_batch=1,
        mesh=Mesh(1, num_ranks, 1),
        precision=Precision.FP32,
        optimizer="sgd",
        schedule=ScheduleName.ONE_F_ONE_B,
        virtual=1,
        stages=(tuple(block.name for block in graph.blocks),),
        tensor=(PatternLine("*", "replicate"),),
        activations=(PatternLine("*", "replicate"),),
        zero=0,
        recompute=(PatternLine("*", "none"),),
        offload="none",
    )
    return start(plan, graph, _build, Options(timeout_s=timeout_s, device=device))


def _build() -> nn.Module:
    return nn.Linear(_WIDTH, _WIDTH)


def _batch(batch_size: int) -> dict[str, Tensor]:
    return {"input": torch.ones(batch_size, _WIDTH)}


def _loss(output: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return output.mean()
