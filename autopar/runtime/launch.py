"""Joining the processes of a run: is there one per device of the plan, and do they all run the same plan?"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist

from autopar.errors import UsageError
from autopar.plan.decisions import Plan
from autopar.runtime.meeting import Meeting, meet, meet_in_group
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


def gather_ranks(options: Options, device: torch.device) -> Meeting:
    """Finds the other ranks, before the first collective where there is no process group yet.

    Raises:
        DistributedError: one of them, or the store between them, does not answer in time.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return meet_in_group(options.timeout_s) if dist.is_initialized() else meet(options.timeout_s)


def join(meeting: Meeting, options: Options, device: torch.device) -> None:
    """Initialises the default process group, unless there is one; a collective of all ranks."""
    if dist.is_initialized():
        return
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=meeting.group_store,
        rank=meeting.rank,
        world_size=meeting.size,
        timeout=timedelta(seconds=options.timeout_s),
    )


def in_common(plan: Plan, fingerprint: str, options: Options) -> dict[str, str]:
    """What the ranks must have in common, in words, and a hash or the value of each."""
    decisions = replace(plan, path="", places={}, sources={})
    return {
        "plan": hashlib.sha256(repr(decisions).encode()).hexdigest(),
        "model": fingerprint,
        "seed and init": f"{options.seed} {options.init_text}",
        "dtype": str(options.dtype),
        "profile": str(options.profile is not None),
        "versions of torch": torch.__version__,
    }
