"""What a step costs beside its operators: the runtime itself, on models that compute next to nothing."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
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
_FEW, _MANY = 1, 17


@dataclass(frozen=True, slots=True)
class Steps:
    """Seconds of steps of a tiny model.

    Attributes:
        few: of a step of one micro-batch.
        many: of a step of ``num_more`` micro-batches more.
    """

    few: Spread
    many: Spread
    num_more: int = _MANY - _FEW

    @property
    def micro_batch_s(self) -> float:
        """What one more micro-batch takes."""
        return max(0.0, self.many.median_s - self.few.median_s) / self.num_more


@dataclass(frozen=True, slots=True)
class OverheadResult:
    """Steps of tiny models on all ranks.

    Attributes:
        plain: data-parallel.
        sharded: likewise, under ZeRO 1; None for one rank, and on GPUs, whose hosts run ahead.
        piped: one stage on each rank, which does as much as a rank of the others; None likewise.
        chain: data-parallel, of ``num_chained`` parameters; None likewise.
        tensor: the same on a tensor axis that divides none of them; None likewise.
        num_chained: parameters of the last two.
    """

    plain: Steps
    sharded: Steps | None = None
    piped: Steps | None = None
    chain: Steps | None = None
    tensor: Steps | None = None
    num_chained: int = 0

    @property
    def tensor_parameter_s(self) -> float | None:
        """What a parameter takes in each pass for being on a tensor axis; None where it was not measured."""
        if self.chain is None or self.tensor is None or not self.num_chained:
            return None
        return (self.tensor.micro_batch_s - self.chain.micro_batch_s) / 2 / self.num_chained


@dataclass(frozen=True, slots=True)
class TinyModels:
    """Captured models that are stepped.

    Attributes:
        one: a small product and its mean.
        chain: as many products as there are ranks.
    """

    one: Capture
    chain: Capture


def tiny_models(num_ranks: int) -> TinyModels:
    """The models for so many ranks."""
    return TinyModels(*(_tiny(num_products) for num_products in (1, num_ranks)))


def measure_overheads(stopwatch: Stopwatch, tiny: TinyModels, timeout_s: float) -> OverheadResult:
    """Measures this rank; every rank takes part."""
    num_ranks = dist.get_world_size()
    across = Mesh(1, num_ranks, 1)
    ways = {"plain": (tiny.one, across, 0)}
    if num_ranks > 1 and stopwatch.share is not None:
        ways |= {
            "sharded": (tiny.one, across, 1),
            "piped": (tiny.chain, Mesh(num_ranks, 1, 1), 0),
            "chain": (tiny.chain, across, 0),
            "tensor": (tiny.chain, Mesh(1, 1, num_ranks), 0),
        }
    options = Options(timeout_s=timeout_s, device=stopwatch.device)
    # Where ranks share cores, one that waits leaves its core to the others.
    shares = stopwatch.share is not None and stopwatch.share > 1
    with _models() as opened:
        tasks = {
            (way, n): Task(f"step of {n} micro-batches, {way}", opened(*asked, n, options), computes=shares)
            for way, asked in ways.items()
            for n in (_FEW, _MANY)
        }
        found = stopwatch.run("runtime", list(tasks.values()))
    steps = {way: Steps(found[tasks[way, _FEW].name], found[tasks[way, _MANY].name]) for way in ways}
    return OverheadResult(**steps, num_chained=len(tiny.chain.at(1).parameters))


@contextmanager
def _models() -> Iterator[Callable[[Capture, Mesh, int, int, Options], Callable[[], None]]]:
    """Gives what starts a model and returns its step; closes all of them."""
    models: list[ParallelModel] = []

    def opened(captured: Capture, mesh: Mesh, zero: int, num: int, options: Options) -> Callable[[], None]:
        graph = captured.at(1)
        model = start(_plan(captured, mesh, zero, num), graph, captured.source.build_model, options)
        models.append(model)
        work = partial(_step, model, _batch(num))
        with redirect_stderr(io.StringIO()):  # every first step compares itself with what was predicted
            work()
        return work

    try:
        yield opened
    finally:
        for model in models:
            model.close()


def _step(model: ParallelModel, batch: dict[str, Tensor]) -> None:
    model.step(batch)
    for parameter in model.parameters():
        parameter.grad = None


def _plan(captured: Capture, mesh: Mesh, zero: int, num_micro_batches: int) -> Plan:
    names = [block.name for block in captured.at(1).blocks]
    num_stages = mesh.pipeline or 1
    cuts = [len(names) * i // num_stages for i in range(num_stages + 1)]
    return Plan(
        global_batch=num_micro_batches * (mesh.data or 1),
        micro_batch=1,
        mesh=mesh,
        precision=Precision.FP32,
        optimizer="sgd",
        schedule=ScheduleName.ONE_F_ONE_B,
        virtual=1,
        stages=tuple(tuple(names[cuts[i] : cuts[i + 1]]) for i in range(num_stages)),
        tensor=(PatternLine("*", "replicate"),),
        activations=(PatternLine("*", "replicate"),),
        zero=zero,
        recompute=(PatternLine("*", "none"),),
        offload="none",
    )


def _tiny(num_products: int) -> Capture:
    source = source_from_functions(partial(_build, num_products), _batch, _loss, {})
    return capture(source, torch.float32)


def _build(num_products: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(_WIDTH, _WIDTH) for _ in range(num_products)))


def _batch(batch_size: int) -> dict[str, Tensor]:
    return {"input": torch.ones(batch_size, _WIDTH)}


def _loss(output: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return output.mean()
