"""Verifying a plan on this machine: every rank a process, float64, against the single process."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from autopar import errors
from autopar.capture.target import ModelSource
from autopar.errors import AutoparError, DistributedError
from autopar.plan.decisions import Plan
from autopar.runtime.initialise import Initialisation
from autopar.runtime.options import Options
from autopar.runtime.parallel import check_complete
from autopar.units import format_seconds
from autopar.verify.job import Failure, Job
from autopar.verify.rank import VerifyOptions
from autopar.verify.report import VerifyReport


def run_verify(
    plan: Plan,
    source: ModelSource,
    *,
    num_steps: int = 3,
    tolerance: float = 1e-9,
    timeout_s: float = 600.0,
    seed: int = 0,
    init: Initialisation | str = Initialisation.SEEDED,
    max_micro_batches: int | None = None,
    as_planned: bool = False,
) -> VerifyReport:
    """Runs a plan on CPU processes of this machine and compares it with one process.

    Both sides start from the same weights, see the same micro-batches, and are stepped by AdamW; the loss and
    every gradient are compared in float64 after each step. Dropout is switched off on both sides.

    ``as_planned`` computes in the plan's precision instead. Two runs that round in different places cannot be
    equal: the parallel one may be off from float64 by four times as much as one process is in that precision
    (``rounding.py`` has the reason), and ``tolerance`` of the report is that bound.

    Args:
        plan: complete.
        source: of the model; its target and arguments are loaded again in the processes.
        num_steps: optimiser steps.
        tolerance: largest relative error that counts as equal; ``report.ok`` says whether it was met. Of no
            effect with ``as_planned``.
        timeout_s: of the whole run.
        seed, init: of the starting weights.
        max_micro_batches: micro-batches per step and data rank; default: enough to fill the pipeline twice.

    Raises:
        PlanError: the plan is incomplete or does not fit the model.
        DistributedError: a process failed or the time was not enough.
    """
    check_complete(plan)
    dtype = Options().compute_dtype(plan) if as_planned else torch.float64
    job = Job(
        plan=plan,
        target=source.target,
        args=dict(source.args),
        options=VerifyOptions(num_steps, tolerance, timeout_s, seed, init, dtype),
        max_micro_batches=max_micro_batches or max(2 * (plan.mesh.pipeline or 1), 2),
    )
    with tempfile.TemporaryDirectory(prefix="autopar-verify-") as folder:
        _run(job, Path(folder))
        failures = sorted(Path(folder).glob("error-*.pickle"))
        if failures:
            raise _error([pickle.loads(path.read_bytes()) for path in failures])
        found = Path(folder) / "report.pickle"
        if not found.is_file():
            raise DistributedError(
                "the verifying processes ended without a report; look at their output above"
            )
        report: VerifyReport = pickle.loads(found.read_bytes())
        return report


def _run(job: Job, folder: Path) -> None:
    (folder / "job.pickle").write_bytes(pickle.dumps(job))
    environment = dict(
        os.environ,
        OMP_NUM_THREADS="1",
        MASTER_ADDR="127.0.0.1",
        CUDA_VISIBLE_DEVICES="",
        TORCH_CPP_LOG_LEVEL="ERROR",  # why a rank stops is said by our own message
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "autopar.verify.job", str(folder), str(os.getpid())],
        env=environment,
        stdout=sys.stderr,
        start_new_session=True,  # so that all ranks can be ended together
    )
    try:
        process.wait(timeout=job.options.timeout_s)
    except subprocess.TimeoutExpired:
        raise DistributedError(
            f"verify did not finish within {format_seconds(job.options.timeout_s)}; give it a smaller model"
            " (--arg), or more time"
        ) from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _error(failures: list[Failure]) -> AutoparError:
    """The error of the rank that failed first of all, not of those that waited for it."""
    told = [x for x in failures if x.is_users]
    cause = next((x for x in failures if x.is_cause), told[0] if told else failures[0])
    kind = getattr(errors, cause.kind, None)
    if cause.is_users and isinstance(kind, type) and issubclass(kind, AutoparError):
        return kind(cause.message)
    if not cause.is_cause:
        return DistributedError(
            f"verify stopped: rank {cause.rank} waited in vain ({cause.message.splitlines()[0][:200]});"
            " give it more time, or a smaller model (--arg)"
        )
    where = "while preparing" if cause.rank < 0 else f"on rank {cause.rank}"
    return AutoparError(f"verify failed {where}: {cause.kind}: {cause.message}\n{cause.trace}")
