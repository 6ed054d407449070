"""Point-to-point links of a pipeline stage to its neighbours.

Each direction has a process group of its own, so that an activation on its way forward and a gradient on its
way back never wait for each other; messages of one direction arrive in the order in which they are sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from autopar.runtime.mesh import RankMesh


class Message(Protocol):
    """Shape and dtype of something to be received."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Local shape."""

    @property
    def dtype(self) -> torch.dtype:
        """Element type."""


Key = tuple[str, int]


@dataclass
class _Asked:
    values: list[Tensor] = field(default_factory=list)
    works: list[dist.Work] = field(default_factory=list)


class Links:
    """Sends and receives of one rank."""

    def __init__(self, mesh: RankMesh) -> None:
        self.device = mesh.device
        self._forward = mesh.pipeline_group
        self._backward = mesh.backward_group
        here = mesh.here
        self._previous: int | None = None
        self._next: int | None = None
        if here.pipeline > 0:
            self._previous = mesh.rank_at(here.pipeline - 1, here.data, here.tensor)
        if here.pipeline + 1 < mesh.pipeline:
            self._next = mesh.rank_at(here.pipeline + 1, here.data, here.tensor)
        self._asked: dict[Key, _Asked] = {}
        self._sending: deque[tuple[dist.Work, Tensor]] = deque()

    def ask_previous(self, key: Key, messages: Sequence[Message]) -> None:
        """Begins to receive from the stage before, if there is one."""
        self._ask(key, messages, self._previous, self._forward)

    def ask_next(self, key: Key, messages: Sequence[Message]) -> None:
        """Begins to receive from the stage after, if there is one."""
        self._ask(key, messages, self._next, self._backward)

    def wait(self, key: Key) -> list[Tensor]:
        """What was asked for under ``key``."""
        asked = self._asked.pop(key)
        for work in asked.works:
            work.wait()
        return asked.values

    def send_next(self, values: Sequence[Tensor]) -> None:
        """Begins to send to the stage after."""
        if self._next is not None:
            self._send(values, self._next, self._forward)

    def send_previous(self, values: Sequence[Tensor]) -> None:
        """Begins to send to the stage before."""
        if self._previous is not None:
            self._send(values, self._previous, self._backward)

    def finish(self) -> None:
        """Waits until everything sent has left."""
        while self._sending:
            self._sending.popleft()[0].wait()

    def _ask(
        self,
        key: Key,
        messages: Sequence[Message],
        rank: int | None,
        group: dist.ProcessGroup | None,
    ) -> None:
        asked = self._asked[key] = _Asked()
        if rank is None:
            return
        for message in messages:
            value = torch.empty(message.shape, dtype=message.dtype, device=self.device)
            work = dist.irecv(value, rank, group=group)
            assert work is not None
            asked.values.append(value)
            asked.works.append(work)

    def _send(self, values: Sequence[Tensor], rank: int, group: dist.ProcessGroup | None) -> None:
        while self._sending and self._sending[0][0].is_completed():
            self._sending.popleft()
        for value in values:
            dense = value.contiguous()
            work = dist.isend(dense, rank, group=group)
            assert work is not None
            self._sending.append((work, dense))
