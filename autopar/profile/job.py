"""The process that profiles: captures the models to be timed, then forks one process for each rank.

Run as ``python -m autopar.profile.job FOLDER PARENT``, with the number of the process that starts it and with
which it ends. The folder holds ``job.pickle``; what comes back is ``result.pickle``, or
``error-<rank>.pickle`` of every rank that failed. ``progress-<rank>`` says what a rank is at, for whoever
watches, and for the message if it never comes back.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
import torch.distributed as dist

from autopar.capture.capture import capture
from autopar.capture.target import load_target
from autopar.errors import UsageError
from autopar.lifeline import end_with_parent
from autopar.lower.axis import ProcessGroupAxis, TensorAxis
from autopar.plan.decisions import Precision
from autopar.profile.block_times import (
    BlockTimes,
    BlockToTime,
    classes_of,
    measure_blocks,
    with_common_updates,
)
from autopar.profile.communication import CommunicationResult, measure_communication, own_group
from autopar.profile.compute import ComputeResult, measure_compute
from autopar.profile.machine import describe_machine
from autopar.profile.merged import merged
from autopar.profile.overheads import OverheadResult, TinyModels, measure_overheads, tiny_models
from autopar.profile.settings import HOST_COPY_BYTES, ProfileResult, ProfileSettings
from autopar.profile.sharded_blocks import shardings_of, with_slowdowns
from autopar.profile.spread import Spread
from autopar.profile.stopwatch import Stopwatch, Task
from autopar.runtime.heap import keep_pages
from autopar.verify.job import failure_of, run_ranks, write_failure

_DTYPES = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16, Precision.FP32: torch.float32}


def blocks_to_time(settings: ProfileSettings) -> tuple[BlockToTime, ...]:
    """One block of every class of every model, at every micro-batch asked for; whole, and as the
    plans asked for divide it.
    """
    found: dict[tuple[str, Precision, int], BlockToTime] = {}
    for model in settings.models:
        source = load_target(model.target, model.args)
        precision = model.precision or (Precision.FP32 if settings.kind == "cpu" else Precision.BF16)
        captured = capture(source, _DTYPES[precision])
        for micro_batch in model.micro_batches:
            graph = captured.at(micro_batch)
            batch = source.example_batch(micro_batch)
            for block in classes_of(graph):
                item = BlockToTime(block, graph, batch, precision)
                found.setdefault((block.class_key, precision, 1), item)
            for shardings in [shardings_of(plan, graph) for plan in model.sharded]:
                for block in classes_of(graph):
                    if block.class_key in shardings:
                        item = BlockToTime(block, graph, batch, precision, shardings[block.class_key])
                        found.setdefault((block.class_key, precision, item.degree), item)
    return tuple(found.values())


def profile_rank(
    settings: ProfileSettings,
    tiny: TinyModels,
    blocks: tuple[BlockToTime, ...],
    tell: Callable[[str], None],
    load: float,
) -> ProfileResult:
    """Profiles on this rank; every rank of the default process group calls it, and all get the same."""
    began_s = time.monotonic()
    device = torch.device(settings.kind, dist.get_rank()) if settings.kind == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        keep_pages()  # as in training

    # Before anything is allocated: what a process takes by itself.
    machine = describe_machine(device)

    share = settings.time_share(machine.num_cores) if device.type == "cpu" else None

    def stopwatch(num_parts: int = 1) -> Stopwatch:
        deadline_s = time.monotonic() + settings.wanted_s / num_parts
        return Stopwatch(device, settings.window_s, settings.num_repetitions, tell, share, deadline_s)

    graphs = [tuple(items) for _, items in groupby(blocks, key=lambda item: (id(item.graph), item.degree))]

    axes = _axes(settings, blocks)

    def measure() -> _Measured:
        times: list[BlockTimes] = []
        for items in graphs:
            times += measure_blocks(stopwatch(max(1, len(graphs) // 2)), items, axes)
        return _Measured(
            compute=measure_compute(stopwatch(), settings.quick),
            communication=measure_communication(stopwatch(), settings.quick, settings.timeout_s),
            overheads=measure_overheads(stopwatch(2), tiny, settings.timeout_s),
            host_copy=_host_copy(stopwatch()) if device.type == "cuda" else None,
            blocks=tuple(times),
        )

    found = merged([measure() for _ in range(settings.num_passes)])
    return ProfileResult(
        settings=settings,
        machine=machine,
        compute=found.compute,
        communication=found.communication,
        overheads=found.overheads,
        host_copy=found.host_copy,
        blocks=with_common_updates(found.blocks),
        elapsed_s=time.monotonic() - began_s,
        load=load,
    )


def _axes(settings: ProfileSettings, blocks: Iterable[BlockToTime]) -> dict[int, TensorAxis]:
    """By degree, the axes on which sharded blocks communicate: every rank is on one of each."""
    if not settings.with_collectives:
        return {}
    degrees = sorted({item.degree for item in blocks if item.sharding is not None})
    return {
        degree: ProcessGroupAxis(own_group(degree, dist.get_world_size(), settings.timeout_s))
        for degree in degrees
        if dist.get_world_size() % degree == 0
    }


@dataclass(frozen=True, slots=True)
class _Measured:
    """What one pass finds."""

    compute: ComputeResult
    communication: CommunicationResult
    overheads: OverheadResult
    host_copy: Spread | None
    blocks: tuple[BlockTimes, ...]


def _host_copy(stopwatch: Stopwatch) -> Spread:
    there = torch.empty(HOST_COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    here = torch.empty_like(there, device=stopwatch.device)
    task = Task("copy from the host", lambda: here.copy_(there, non_blocking=True))
    return stopwatch.run("host link", [task])[task.name]


def main(folder: Path) -> int:
    """Runs the job of a folder."""
    settings: ProfileSettings = pickle.loads((folder / "job.pickle").read_bytes())
    torch.set_num_threads(1)
    load = os.getloadavg()[0]

    def tell_as(rank: int) -> Callable[[str], None]:
        path = folder / f"progress-{rank}"

        def tell(text: str) -> None:
            path.write_text(text)

        return tell

    try:
        tell_as(-1)("capturing the models")
        if settings.kind == "cpu" and settings.num_processes < 1:
            raise UsageError("a profile needs at least one process")
        tiny, blocks = tiny_models(settings.num_processes), blocks_to_time(settings)
    except Exception as error:
        write_failure(folder, failure_of(error, -1))
        return 1

    def body(rank: int) -> None:
        result = profile_rank(settings, tiny, blocks, tell_as(rank), load)
        if rank == 0:
            result = with_slowdowns(result, blocks, folder)
            (folder / "result.pickle").write_bytes(pickle.dumps(result))

    backend = "nccl" if settings.kind == "cuda" else "gloo"
    run_ranks(folder, settings.num_processes, settings.timeout_s, body, backend)
    return 0


if __name__ == "__main__":
    # Under its own name: what is pickled here is read by a process that knows this module by it.
    from autopar.profile import job as this

    end_with_parent(int(sys.argv[2]))
    sys.exit(this.main(Path(sys.argv[1])))
