"""Collectives and messages by size and group, every group of the machine at work at once as in training.

Where the processes that communicate also compute (gloo), a collective between two computations takes several
times as long as one of many in a row: the ranks do not come at the same moment, threads have to be woken, and
what they need has left the caches. So there a product runs before each collective, and the time of the
product alone is taken off.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F

from autopar.hardware.link import CollectiveKind
from autopar.profile.spread import Spread, scaled
from autopar.profile.stopwatch import Stopwatch, Task
from autopar.units import KiB, MiB

_SIZES = (64, 4 * KiB, 32 * KiB, 256 * KiB, 1 * MiB, 4 * MiB, 16 * MiB)
_QUICK_SIZES = (64, 256 * KiB, 4 * MiB)
_GPU_SIZES = (*_SIZES, 64 * MiB, 256 * MiB)
_KINDS = (
    CollectiveKind.ALL_REDUCE,
    CollectiveKind.ALL_GATHER,
    CollectiveKind.REDUCE_SCATTER,
    CollectiveKind.ALL_TO_ALL,
)


@dataclass(frozen=True, slots=True)
class CommunicationResult:
    """Seconds of one call.

    Attributes:
        collectives: by kind, group size and payload (``CollectiveKind`` says of what).
        messages: one way, by bytes; empty where there is one rank.
        messages_alone: likewise, between two ranks while all others wait; empty where sending takes no core.
    """

    collectives: dict[tuple[CollectiveKind, int, int], Spread]
    messages: dict[int, Spread]
    messages_alone: dict[int, Spread] = field(default_factory=dict)


def measure_communication(stopwatch: Stopwatch, quick: bool, timeout_s: float) -> CommunicationResult:
    """Measures groups of 2, 4, 8, ... ranks up to all of them, and messages to the next rank."""
    num_ranks = dist.get_world_size()
    if num_ranks < 2:
        return CommunicationResult({}, {})
    sizes = _QUICK_SIZES if quick else _GPU_SIZES if stopwatch.device.type == "cuda" else _SIZES
    tasks: dict[tuple[CollectiveKind, int, int], Task] = {}
    for size in group_sizes(num_ranks):
        group = own_group(size, num_ranks, timeout_s)
        for kind in _KINDS:
            for num_bytes in sizes:
                work = _collective(kind, num_bytes, size, group, stopwatch.device)
                name = f"{kind} of {num_bytes} bytes in groups of {size}"
                tasks[kind, size, num_bytes] = Task(name, work, computes=False)
    busy = _product() if stopwatch.device.type == "cpu" else None
    if busy is not None:
        tasks = {key: replace(task, work=_after(busy, task.work)) for key, task in tasks.items()}
    messages = {
        num_bytes: Task(
            f"message of {num_bytes} bytes",
            _after(busy, _message(num_bytes, num_ranks, stopwatch.device)),
            computes=False,
        )
        for num_bytes in sizes
    }
    everything = [*tasks.values(), *messages.values()]
    if busy is None:
        found = _run(stopwatch, everything)
        return CommunicationResult(
            {key: found[task.name] for key, task in tasks.items()},
            {num_bytes: found[task.name] for num_bytes, task in messages.items()},
        )
    there_and_back = {
        num_bytes: Task(f"message of {num_bytes} bytes alone", _reply(num_bytes, busy), computes=False)
        for num_bytes in sizes
    }
    before = Task("product before a collective", busy, computes=False)
    before_alone = Task("product before a message", busy if dist.get_rank() == 0 else _wait, computes=False)
    found = _run(stopwatch, [*everything, *there_and_back.values(), before, before_alone])
    before_s, before_alone_s = found[before.name].median_s, found[before_alone.name].median_s
    return CommunicationResult(
        {key: _without(before_s, found[task.name]) for key, task in tasks.items()},
        {num_bytes: _without(before_s, found[task.name]) for num_bytes, task in messages.items()},
        {
            num_bytes: _without(before_alone_s, scaled(found[task.name], 0.5))
            for num_bytes, task in there_and_back.items()
        },
    )


def _run(stopwatch: Stopwatch, tasks: Sequence[Task]) -> dict[str, Spread]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch renames collectives from version to version
        return stopwatch.run("communication", tasks)


def group_sizes(num_ranks: int) -> tuple[int, ...]:
    """Powers of two that divide the ranks, and all of them."""
    sizes = [2**i for i in range(1, num_ranks.bit_length()) if num_ranks % 2**i == 0]
    return tuple(sorted({*sizes, num_ranks}))


def own_group(size: int, num_ranks: int, timeout_s: float) -> dist.ProcessGroup:
    """This rank's of the groups of neighbours; a collective of all ranks."""
    own: dist.ProcessGroup | None = None
    for first in range(0, num_ranks, size):
        group = dist.new_group(list(range(first, first + size)), timeout=timedelta(seconds=timeout_s))
        if first <= dist.get_rank() < first + size:
            own = group
    assert own is not None
    return own


def _collective(
    kind: CollectiveKind, num_bytes: int, size: int, group: dist.ProcessGroup, device: torch.device
) -> Callable[[], object]:
    piece = torch.zeros(max(1, num_bytes // 4 // size), device=device)
    whole = torch.zeros(piece.numel() * size, device=device)
    other = torch.zeros_like(whole)
    calls: dict[CollectiveKind, Callable[[], object]] = {
        CollectiveKind.ALL_REDUCE: lambda: dist.all_reduce(whole, group=group),
        CollectiveKind.ALL_GATHER: lambda: dist.all_gather_into_tensor(whole, piece, group=group),
        CollectiveKind.REDUCE_SCATTER: lambda: dist.reduce_scatter_tensor(piece, whole, group=group),
        CollectiveKind.ALL_TO_ALL: lambda: dist.all_to_all_single(other, whole, group=group),
    }
    return calls[kind]


def _product() -> Callable[[], object]:
    """About a millisecond of a core, and more memory than its own caches hold."""
    first, second = torch.randn(64, 1024), torch.randn(512, 1024)
    return lambda: F.linear(first, second)


def _after(first: Callable[[], object] | None, then: Callable[[], object]) -> Callable[[], object]:
    if first is None:
        return then

    def both() -> None:
        first()
        then()

    return both


def _without(seconds: float, spread: Spread) -> Spread:
    least_s = 0.05 * spread.median_s  # what is left of a small difference is noise
    return Spread(
        max(least_s, spread.median_s - seconds),
        max(least_s, spread.low_s - seconds),
        max(least_s, spread.high_s - seconds),
        spread.num_repetitions,
    )


def _wait() -> None:
    """What ranks do that take no part: the next barrier is where they wait."""


def _reply(num_bytes: int, busy: Callable[[], object]) -> Callable[[], object]:
    """The first rank computes and sends to the second, which then does the same; the others wait."""
    rank = dist.get_rank()
    value = torch.zeros(max(1, num_bytes // 4))

    def exchange(operation: Callable[..., object]) -> None:
        for work in dist.batch_isend_irecv([dist.P2POp(operation, value, 1 - rank)]):
            work.wait()

    def first() -> None:
        busy()
        exchange(dist.isend)
        exchange(dist.irecv)

    def second() -> None:
        exchange(dist.irecv)
        busy()
        exchange(dist.isend)

    return first if rank == 0 else second if rank == 1 else _wait


def _message(num_bytes: int, num_ranks: int, device: torch.device) -> Callable[[], object]:
    """Every rank sends to the next and receives from the one before, all at once."""
    rank = dist.get_rank()
    sent = torch.zeros(max(1, num_bytes // 4), device=device)
    received = torch.zeros_like(sent)

    def exchange() -> None:
        operations = [
            dist.P2POp(dist.irecv, received, (rank - 1) % num_ranks),
            dist.P2POp(dist.isend, sent, (rank + 1) % num_ranks),
        ]
        for work in dist.batch_isend_irecv(operations):
            work.wait()

    return exchange
