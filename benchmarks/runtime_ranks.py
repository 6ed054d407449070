"""One rank of one comparison of ``runtime.py``, which starts it under torch.distributed's environment.

Run as ``python benchmarks/runtime_ranks.py FOLDER PARENT``, with the number of the process that starts it and
with which it ends: the folder holds ``job.pickle``; rank 0 leaves ``result.pickle``. The sides of a
comparison are built in one group of processes and take turns; a side that is alone imports what it needs, and
nothing of the other.
"""

from __future__ import annotations

import gc
import os
import pickle
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from autopar.capture.target import ModelSource, load_target
from autopar.lifeline import end_with_parent
from autopar.plan.decisions import Plan, Scalar

_PIPELINED = ("pipeline", "pipeline_data", "pipeline_tensor")
_TURN_S = 0.3
_LEAST_STEPS, _MOST_STEPS = 2, 20


@dataclass(frozen=True)
class RuntimeJob:
    """One comparison.

    Attributes:
        peer: name of its maker in ``runtime_peers``.
        plan: the same parallelism.
        sides: of ``autopar`` and ``peer``, those to run; one alone is measured for its memory.
        num_rounds: turns of each side.
    """

    target: str
    args: Mapping[str, Scalar]
    peer: str
    plan: Plan
    sides: tuple[str, ...]
    num_rounds: int


@dataclass(frozen=True)
class Measured:
    """What a comparison found.

    Attributes:
        step_s: by side, seconds of a step, one per round, of the slowest rank.
        busy_s: by side, processor seconds of a step over all ranks and threads, one per round.
        peak_bytes: by side, resident memory of the rank that has most, at its peak while steps run.
    """

    step_s: Mapping[str, list[float]]
    busy_s: Mapping[str, list[float]]
    peak_bytes: Mapping[str, int]


@dataclass
class _Side:
    step: Callable[[], None]
    times_s: list[float]
    busy_s: list[float]


def main(folder: Path) -> None:
    """Runs this rank."""
    job: RuntimeJob = pickle.loads((folder / "job.pickle").read_bytes())
    torch.set_num_threads(1)
    source = load_target(job.target, job.args)
    makers = {"autopar": _autopar, "peer": _peer}
    torch.manual_seed(0)
    batch = source.example_batch(job.plan.global_batch or 1)
    sides = {name: _Side(makers[name](job, source, batch), [], []) for name in job.sides}
    for side in sides.values():
        side.step()
    gc.collect()
    _forget_peak()
    counts = {name: _num_steps(side) for name, side in sides.items()}
    for _ in range(job.num_rounds):
        for name, side in sides.items():
            side.step()  # its weights were out of the caches while the other had its turn
            elapsed_s, busy_s = _elapsed_s(side, counts[name])
            side.times_s.append(elapsed_s)
            side.busy_s.append(busy_s)
    peak_bytes = int(_agreed(float(_peak_bytes()), dist.ReduceOp.MAX))
    if dist.get_rank() == 0:
        result = Measured(
            {name: side.times_s for name, side in sides.items()},
            {name: side.busy_s for name, side in sides.items()},
            dict.fromkeys(job.sides, peak_bytes),
        )
        (folder / "result.pickle").write_bytes(pickle.dumps(result))
    dist.barrier()
    os._exit(0)  # a pipeline of either side leaves threads behind


def _autopar(job: RuntimeJob, source: ModelSource, whole: Mapping[str, Tensor]) -> Callable[[], None]:
    import autopar

    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - what the first step says of itself
    model = autopar.parallelize(
        source.build_model, job.plan, loss=source.loss, example_batch=source.example_batch
    )
    return _training(model.step, model.parameters(), _share(whole, model.data_rank, model.data_world_size))


def _peer(job: RuntimeJob, source: ModelSource, whole: Mapping[str, Tensor]) -> Callable[[], None]:
    import runtime_peers

    if not dist.is_initialized():  # parallelize() makes the group where it comes first
        dist.init_process_group("gloo")
    module, loss = source.build_model(), source.loss
    assert loss is not None
    make = getattr(runtime_peers, job.peer.removesuffix("_compiled"))
    extra: tuple[object, ...] = ()
    if job.peer in _PIPELINED:
        extra = (whole, job.plan.num_micro_batches)
    if job.peer.endswith("_compiled"):
        extra = (True,)
    peer: runtime_peers.Peer = make(module, loss, *extra)
    return _training(peer.step, peer.parameters, _share(whole, peer.data_rank, peer.data_size))


def _share(whole: Mapping[str, Tensor], rank: int, size: int) -> dict[str, Tensor]:
    """What one data rank trains on: neighbouring samples of every entry."""
    return {name: entry.chunk(size)[rank] for name, entry in whole.items()}


def _training(
    compute: Callable[[dict[str, Tensor]], object],
    parameters: Iterable[nn.Parameter],
    batch: dict[str, Tensor],
) -> Callable[[], None]:
    """A step of a side: gradients of its share, and the update."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> None:
        compute(batch)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _num_steps(side: _Side) -> int:
    """Steps of a turn, the same on all ranks."""
    once_s, _ = _elapsed_s(side, 1)
    return max(_LEAST_STEPS, min(_MOST_STEPS, round(_TURN_S / once_s)))


def _elapsed_s(side: _Side, num_steps: int) -> tuple[float, float]:
    """Seconds of a step of the slowest rank, and processor seconds of all ranks."""
    dist.barrier()
    began_s, busy_s = time.perf_counter(), time.process_time()
    for _ in range(num_steps):
        side.step()
    elapsed_s, busy_s = time.perf_counter() - began_s, time.process_time() - busy_s
    return (
        _agreed(elapsed_s / num_steps, dist.ReduceOp.MAX),
        _agreed(busy_s / num_steps, dist.ReduceOp.SUM),
    )


def _agreed(value: float, operation: dist.ReduceOp.RedOpType) -> float:
    tensor = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(tensor, operation)
    return float(tensor[0])


def _forget_peak() -> None:
    """Linux: the peak of resident memory starts again from what is resident now (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    # Under its own name: what is pickled here is read by a process that knows this module by it.
    import runtime_ranks as this

    end_with_parent(int(sys.argv[2]))
    this.main(Path(sys.argv[1]))
