"""What the ranks do in tests of waits that never end, and of files that cannot grow; see ``world.py``."""

import resource
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist

from autopar.runtime import parallel
from tests.runtime import world
from tests.runtime.bodies import Run, said

prepare = world.source_and_graph


def stand_still(case):
    """The last rank does not take part in something; the others say so."""
    how, folder, timeout_s = case.extra["how"], Path(case.extra["folder"]), case.extra["timeout_s"]
    rank, size = dist.get_rank(), dist.get_world_size()
    is_last = rank == size - 1
    began_s = time.monotonic()
    try:
        if how == "parallelize" and is_last:
            return wait_for_others(folder, size)
        if how == "building" and is_last:
            parallel.assemble = lambda *_, **__: wait_for_others(folder, size)
        run = Run(case, timeout_s=timeout_s)
        run.model.step(run.share())
        if how == "load":
            run.model.save(folder / "checkpoint")
        began_s = time.monotonic()
        if is_last:
            return wait_for_others(folder, size)
        ways(run, folder)[how]()
    except Exception as error:
        return {"kind": type(error).__name__, "message": str(error), "after_s": time.monotonic() - began_s}
    finally:
        (folder / f"done-{rank}").touch()
    return "no error"


def differ(case):
    """Rank 0 alone makes a call that needs all ranks, while the others train on."""
    how, folder = case.extra["how"], Path(case.extra["folder"])
    run = Run(case, timeout_s=case.extra["timeout_s"])
    run.model.step(run.share())
    call = ways(run, folder)[how if dist.get_rank() == 0 else "step"]
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def uneven_evaluation(case):
    """Rank 0 evaluates one micro-batch, rank 1 two; then both evaluate one."""
    run = Run(case)
    batches = run.micro_batches(0)
    both = {key: torch.cat([batch[key] for batch in batches[:2]]) for key in batches[0]}
    message = said(lambda: run.model.eval_step(both if dist.get_rank() else batches[0]))
    loss = float(run.model.eval_step(batches[0]))
    run.model.close()
    return message, loss


def ways(run, folder):
    """All that waits for other ranks, by name."""
    return {
        "step": lambda: run.model.step(run.share(1)),
        "eval_step": lambda: run.model.eval_step(run.share(1)),
        "clip_grad_norm_": lambda: run.model.clip_grad_norm_(1.0),
        "save": lambda: run.model.save(folder / "checkpoint"),
        "load": lambda: run.model.load(folder / "checkpoint"),
        "full_state_dict": run.model.full_state_dict,
        "full_gradients": run.model.full_gradients,
        "whole_parameters": lambda: dict(run.model.whole_parameters()),
    }


def wait_for_others(folder, size):
    """Lives, and does nothing, until the others are done."""
    while not all((folder / f"done-{rank}").exists() for rank in range(size - 1)):
        time.sleep(0.05)
    return "stood still"


def full_disk(case):
    """One rank cannot write; what was saved before stays, and when there is room again, saving works."""
    path = Path(case.extra["folder"]) / "checkpoint"
    run = Run(case)
    optimizer = torch.optim.AdamW(run.model.parameters())
    run.model.step(run.share())
    optimizer.step()
    run.model.save(path, optimizer)
    run.model.step(run.share(1))
    optimizer.step()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    message = "no error"
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        run.model.save(path, optimizer)
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    dist.barrier()
    left = sorted(x.name for x in path.parent.iterdir())
    found = []
    for _ in range(2):
        other = Run(case, seed=1)
        other.model.load(path, torch.optim.AdamW(other.model.parameters()))
        found.append(other.model.num_steps)
        other.model.close()
        run.model.save(path, optimizer)
    run.model.close()
    return message, left, found
