"""Joining the processes of a run: is there one per device of the plan, and do they all run the same plan?"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]

from autopar.errors import UsageError
from autopar.plan.decisions import Plan
from autopar.runtime.options import Options


def check_world_size(plan: Plan) -> None:
    """Compares the number of processes with the plan's mesh, before anything is communicated.

    Raises:
        UsageError: they differ; says how to start the right number.
    """
    mesh = plan.mesh
    assert mesh.pipeline and mesh.data and mesh.tensor
    wanted = mesh.pipeline * mesh.data * mesh.tensor
    found = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
    if found != wanted:
        raise UsageError(
            f"the plan is for {wanted} processes (pipeline {mesh.pipeline} x data {mesh.data} x tensor"
            f" {mesh.tensor}),"
            f" and {found} run; start with: torchrun --nproc-per-node {wanted} ..."
        )


def join(options: Options, device: torch.device) -> None:
    """Initialises the default process group, unless there is one."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if dist.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=options.timeout_s)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=timeout)


def plan_digest(plan: Plan, fingerprint: str, options: Options) -> str:
    """A hash of everything that the ranks must have in common."""
    decisions = replace(plan, path="", places={}, sources={})
    has_trace = options.profile is not None
    chosen = (options.seed, str(options.init), options.dtype, has_trace)
    text = repr((decisions, fingerprint, *chosen, torch.__version__))
    return hashlib.sha256(text.encode()).hexdigest()
