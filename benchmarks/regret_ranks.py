"""Measures training steps of plans on gloo processes of this machine; ``regret.py`` starts it.

Run as ``python benchmarks/regret_ranks.py FOLDER PARENT``, with the number of the process that starts it and
with which it ends: the folder holds ``job.pickle``, and ``result.pickle`` comes back. The model is captured
once; every turn of every plan then has processes of its own, as under ``torchrun``: in the heap that another
plan leaves, tables of some MiB find their pages or fault them in anew, which is up to half of a step.
"""

from __future__ import annotations

import os
import pickle
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from autopar.capture.capture import Capture, capture
from autopar.capture.target import ModelSource, load_target
from autopar.lifeline import end_with_parent
from autopar.plan.decisions import Plan, Scalar
from autopar.runtime.options import Options
from autopar.runtime.parallel import ParallelModel, start
from autopar.verify.job import failure_of, run_ranks, write_failure
from autopar.verify.rank import share_of

_LEAST_ROUNDS = 3
# Further rounds of plans whose median is less than so many times the least; how many, and how long against
# the others.
_NEAR, _MOST_FURTHER_ROUNDS, _FURTHER = 1.2, 14, 0.5
_TURN_S = 0.5
_MOST_STEPS = 10
_NUM_WARM_UP = 2
_NUM_PRODUCTS = 40
PRODUCT_EDGE = 256
"""Of the cubes that are multiplied to see how fast the machine is."""


@dataclass(frozen=True)
class RegretJob:
    """What to measure.

    Attributes:
        num_rounds: turns of every plan; the quickest have more.
        wanted_s: after which no further round of all plans begins.
        timeout_s: of every wait for another rank.
    """

    target: str
    args: Mapping[str, Scalar]
    plans: tuple[Plan, ...]
    num_rounds: int
    wanted_s: float
    timeout_s: float


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        steps_s: of every plan, one per turn.
        products_s: of one product of cubes while all ranks multiply, one per turn.
    """

    steps_s: dict[int, list[float]]
    products_s: list[float]


@dataclass(frozen=True)
class _Turn:
    """Seconds of a step, and of a product."""

    step_s: float
    product_s: float


@dataclass
class _Built:
    model: ParallelModel
    optimizer: torch.optim.Optimizer
    batch: dict[str, Tensor]

    def step(self) -> None:
        self.model.step(self.batch)
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure(job: RegretJob, source: ModelSource, captured: Capture, folder: Path) -> Measured | None:
    """Seconds of a step of every plan, once a round; None if a rank failed, which says why in the folder.

    The quickest have further rounds: which of them is the best is a matter of a few percent.
    """
    torch.manual_seed(0)
    whole = source.example_batch(job.plans[0].global_batch or 1)
    found: dict[int, list[float]] = {index: [] for index in range(len(job.plans))}
    products_s: list[float] = []

    def run_round(round_: int, indices: Sequence[int]) -> bool:
        # To and fro: what changes the machine's speed in the course of a round favours no plan.
        for index in indices[:: -1 if round_ % 2 else 1]:
            at = f"round {round_} of plan {index}: {_name(job.plans[index])}"
            turn = _in_new_processes(job, job.plans[index], source, captured, whole, folder, at)
            if turn is None:
                return False
            found[index].append(turn.step_s)
            products_s.append(turn.product_s)
        return True

    began_s = time.monotonic()
    for round_ in range(job.num_rounds):
        if round_ >= _LEAST_ROUNDS and time.monotonic() - began_s > job.wanted_s:
            break
        if not run_round(round_, list(found)):
            return None
    medians_s = {index: statistics.median(seconds) for index, seconds in found.items()}
    near = [index for index, step_s in medians_s.items() if step_s < _NEAR * min(medians_s.values())]
    began_s = time.monotonic()
    for round_ in range(job.num_rounds, job.num_rounds + _MOST_FURTHER_ROUNDS):
        if len(near) < 2 or time.monotonic() - began_s > _FURTHER * job.wanted_s:
            break
        if not run_round(round_, near):
            return None
    return Measured(found, products_s)


def _in_new_processes(
    job: RegretJob,
    plan: Plan,
    source: ModelSource,
    captured: Capture,
    whole: Mapping[str, Tensor],
    folder: Path,
    at: str,
) -> _Turn | None:
    def body(rank: int) -> None:
        (folder / f"progress-{rank}").write_text(at)
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - what every first step says of itself
        turn = _measure_on_rank(_build(plan, source, captured, whole, job.timeout_s))
        if rank == 0:
            (folder / "turn.pickle").write_bytes(pickle.dumps(turn))

    mesh = plan.mesh
    num_ranks = (mesh.pipeline or 1) * (mesh.data or 1) * (mesh.tensor or 1)
    run_ranks(folder, num_ranks, job.timeout_s, body)
    (folder / "rendezvous").unlink(missing_ok=True)
    if any(folder.glob("error-*.pickle")):
        return None
    turn: _Turn = pickle.loads((folder / "turn.pickle").read_bytes())
    return turn


def _measure_on_rank(built: _Built) -> _Turn:
    for _ in range(_NUM_WARM_UP):
        built.step()
    num_steps = max(1, min(_MOST_STEPS, round(_TURN_S / _agreed(_elapsed_s(built, 1)))))
    step_s = _agreed(_elapsed_s(built, num_steps))
    product_s = _product_s()
    built.model.close()
    return _Turn(step_s, product_s)


def _product_s() -> float:
    """Seconds of one product on the slowest rank, as the profile has them: how fast the machine is now."""
    first, second = torch.randn(2, PRODUCT_EDGE, PRODUCT_EDGE)
    dist.barrier()
    began_s = time.perf_counter()
    for _ in range(_NUM_PRODUCTS):
        F.linear(first, second)
    return _agreed(time.perf_counter() - began_s) / _NUM_PRODUCTS


def _build(
    plan: Plan, source: ModelSource, captured: Capture, whole: Mapping[str, Tensor], timeout_s: float
) -> _Built:
    graph = captured.at(plan.micro_batch or 1)
    options = Options(device=torch.device("cpu"), timeout_s=timeout_s)
    model = start(plan, graph, source.build_model, options)
    batch = share_of(dict(whole), graph.batch_dims, model.data_rank, model.data_world_size)
    return _Built(model, torch.optim.AdamW(model.parameters(), lr=1e-4), batch)


def _elapsed_s(built: _Built, num_steps: int) -> float:
    dist.barrier()
    began_s = time.perf_counter()
    for _ in range(num_steps):
        built.step()
    dist.barrier()
    return (time.perf_counter() - began_s) / num_steps


def _agreed(value: float) -> float:
    tensor = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return float(tensor[0])


def _name(plan: Plan) -> str:
    mesh = plan.mesh
    return f"{mesh.pipeline} x {mesh.data} x {mesh.tensor}, micro-batch {plan.micro_batch}"


def whereabouts(folder: Path) -> str:
    """What every rank was last at."""
    return "; ".join(
        f"rank {path.name.removeprefix('progress-')} was at '{path.read_text()}'"
        for path in sorted(folder.glob("progress-*"))
    )


def main(folder: Path) -> int:
    """Runs the job of a folder."""
    job: RegretJob = pickle.loads((folder / "job.pickle").read_bytes())
    torch.set_num_threads(1)
    try:
        source = load_target(job.target, job.args)
        captured = capture(source, torch.float32)
        for size in sorted({plan.micro_batch or 1 for plan in job.plans}):
            captured.at(size)
    except Exception as error:
        write_failure(folder, failure_of(error, -1))
        return 1

    result = measure(job, source, captured, folder)
    if result is not None:
        (folder / "result.pickle").write_bytes(pickle.dumps(result))
    return 0


if __name__ == "__main__":
    # Under its own name: what is pickled here is read by a process that knows this module by it.
    import regret_ranks as this

    end_with_parent(int(sys.argv[2]))
    sys.exit(this.main(Path(sys.argv[1])))
