"""Ranks of a tensor axis as threads of one process, meeting at a barrier: deterministic and fast."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Meeting:
    """Where the ranks exchange tensors."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=60)
        self.tensors: list[Tensor] = [torch.empty(0)] * size


class ThreadedAxis:
    """The tensor axis of one thread."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting = meeting
        self.rank = rank
        self.size = meeting.size

    def _exchange(self, tensor: Tensor) -> list[Tensor]:
        self.meeting.tensors[self.rank] = tensor.detach().clone()
        self.meeting.barrier.wait()
        given = list(self.meeting.tensors)
        self.meeting.barrier.wait()
        assert len({(tuple(t.shape), t.dtype) for t in given}) == 1, [t.shape for t in given]
        return given

    def all_reduce(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._exchange(tensor)).sum(0).to(tensor.dtype)

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._exchange(tensor)).amax(0)

    def all_gather(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._exchange(tensor))

    def begin_all_gather(self, tensor: Tensor) -> Callable[[], Tensor]:
        gathered = self.all_gather(tensor)
        return lambda: gathered

    def reduce_scatter(self, pieces: Tensor) -> Tensor:
        return torch.stack([other[self.rank] for other in self._exchange(pieces)]).sum(0)

    def all_to_all(self, pieces: Tensor) -> Tensor:
        return torch.stack([other[self.rank] for other in self._exchange(pieces)])

    def own_stream(self, device: torch.device) -> AbstractContextManager[None]:
        return nullcontext()


def run_on_ranks(size: int, program: Callable[[ThreadedAxis], Result]) -> list[Result]:
    """Runs ``program`` on every rank at once and returns their results in order."""
    meeting = Meeting(size)
    results: list[Result | None] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = program(ThreadedAxis(meeting, rank))
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    assert not errors, errors
    return results  # type: ignore[return-value]
