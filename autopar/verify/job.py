"""The process that verifies: captures the model once, then forks one process for each rank.

Run as ``python -m autopar.verify.job FOLDER PARENT``, with the number of the process that starts it and with
which it ends. The folder holds ``job.pickle``; what comes back is ``report.pickle``, or
``error-<rank>.pickle`` of every rank that failed. Forking after the capture spares each rank the import of
torch and a capture of its own.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from autopar.capture.capture import capture
from autopar.capture.model_graph import ModelGraph
from autopar.capture.target import ModelSource, load_target
from autopar.errors import AutoparError, DistributedError
from autopar.lifeline import end_with_parent
from autopar.lower.resolve import resolve
from autopar.plan.decisions import Plan, Scalar
from autopar.runtime.watchdog import is_communication_error
from autopar.verify.constant_draws import with_constant_draws
from autopar.verify.rank import VerifyOptions, verify_rank
from autopar.verify.without_dropout import without_dropout

# How long the other ranks may take to say why they stop, once one has failed.
_GRACE_S = 15.0


@dataclass(frozen=True, slots=True)
class Job:
    """What to verify.

    Attributes:
        target, args: of the model.
        max_micro_batches: per step and data rank; more of them only repeat the same work.
    """

    plan: Plan
    target: str
    args: Mapping[str, Scalar]
    options: VerifyOptions
    max_micro_batches: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a rank stopped.

    Attributes:
        rank: -1 before the ranks were started.
        kind: name of the exception's class.
        is_users: the message alone is for the user; otherwise the trace is of interest.
        is_cause: the rank failed by itself, not because another one did not answer.
    """

    rank: int
    kind: str
    message: str
    exit_status: int
    is_users: bool
    is_cause: bool
    trace: str


def prepare(job: Job) -> tuple[Plan, ModelSource, ModelGraph, tuple[str, ...]]:
    """Captures the model as it will be compared: in one dtype, without chance, with few micro-batches."""
    plan, notes = job.plan, []
    data, micro_batch = plan.mesh.data or 1, plan.micro_batch or 1
    if plan.num_micro_batches > job.max_micro_batches:
        plan = replace(plan, global_batch=job.max_micro_batches * data * micro_batch)
        notes.append(f"{job.max_micro_batches} micro-batches a step instead of {job.plan.num_micro_batches}")
    source = load_target(job.target, job.args)
    constant, had_draws = with_constant_draws(capture(source, job.options.dtype).at(micro_batch))
    graph, had_dropout = without_dropout(constant)
    resolve(plan, graph)  # a mistake in the plan is found once, not on every rank
    if had_dropout:
        notes.append("dropout switched off on both sides")
    if had_draws:
        notes.append("constants in place of random numbers on both sides")
    return plan, source, graph, tuple(notes)


def run_ranks(
    folder: Path, num_ranks: int, timeout_s: float, body: Callable[[int], object], backend: str = "gloo"
) -> None:
    """Forks ``num_ranks`` processes in one process group, and waits for them.

    Args:
        folder: where a failing rank leaves ``error-<rank>.pickle``.
        timeout_s: of the default process group.
        body: called with the rank.
        backend: of the group.
    """
    parent = os.getpid()
    processes: dict[int, int] = {}
    for rank in range(num_ranks):
        process = os.fork()
        if process == 0:
            end_with_parent(parent)
            os._exit(_run_rank(folder, rank, num_ranks, timeout_s, body, backend))
        processes[process] = rank
    deadline_s = float("inf")
    while processes and time.monotonic() < deadline_s:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process == 0:
            time.sleep(0.02)
            continue
        rank = processes.pop(process)
        if status != 0:
            deadline_s = min(deadline_s, time.monotonic() + _GRACE_S)
            if not (folder / f"error-{rank}.pickle").exists():
                message = f"rank {rank} was ended by signal {status & 127} (out of memory?)"
                write_failure(folder, Failure(rank, "DistributedError", message, 1, True, True, ""))
    for process in processes:
        os.kill(process, 9)
        os.waitpid(process, 0)


def write_failure(folder: Path, failure: Failure) -> None:
    """Leaves a failure for the parent to read."""
    (folder / f"error-{failure.rank}.pickle").write_bytes(pickle.dumps(failure))


def failure_of(error: BaseException, rank: int) -> Failure:
    """Describes an exception."""
    known = isinstance(error, AutoparError)
    return Failure(
        rank=rank,
        kind=type(error).__name__,
        message=str(error),
        exit_status=error.exit_status if isinstance(error, AutoparError) else 1,
        is_users=known,
        is_cause=not isinstance(error, DistributedError) and not is_communication_error(error),
        trace="" if known else traceback.format_exc(),
    )


def _run_rank(
    folder: Path,
    rank: int,
    num_ranks: int,
    timeout_s: float,
    body: Callable[[int], object],
    backend: str,
) -> int:
    torch.set_num_threads(1)
    try:
        # A file instead of a port: no port can be taken by somebody else in between.
        dist.init_process_group(
            backend,
            init_method=f"file://{folder / 'rendezvous'}",
            rank=rank,
            world_size=num_ranks,
            timeout=timedelta(seconds=timeout_s),
        )
        body(rank)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException as error:
        write_failure(folder, failure_of(error, rank))
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def main(folder: Path) -> int:
    """Runs the job of a folder."""
    job: Job = pickle.loads((folder / "job.pickle").read_bytes())
    torch.set_num_threads(1)
    try:
        plan, source, graph, notes = prepare(job)
    except Exception as error:
        write_failure(folder, failure_of(error, -1))
        return 1

    def body(rank: int) -> None:
        report = verify_rank(plan, source, graph, job.options, notes)
        if report is not None:
            (folder / "report.pickle").write_bytes(pickle.dumps(report))

    mesh = plan.mesh
    num_ranks = (mesh.pipeline or 1) * (mesh.data or 1) * (mesh.tensor or 1)
    run_ranks(folder, num_ranks, job.options.timeout_s, body)
    return 0


if __name__ == "__main__":
    # Under its own name: what is pickled here is read by a process that knows this module by it.
    from autopar.verify import job as this

    end_with_parent(int(sys.argv[2]))
    sys.exit(this.main(Path(sys.argv[1])))
