"""Links of one rank to those that hold the neighbouring stages.

Every pair of ranks has two channels, one in each direction, in process groups of their own: a message on its
way never waits for one that comes the other way. Within a channel messages arrive in the order in which they
are sent, and are asked for in that order (``messages.traffic``). What a rank hands to itself stays where it
is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from autopar.runtime.crossings import Crossing
from autopar.runtime.mesh import RankMesh
from autopar.runtime.messages import Message, Traffic


@dataclass
class _Asked:
    values: list[Tensor] = field(default_factory=list)
    works: list[dist.Work] = field(default_factory=list)


@dataclass
class _Channel:
    """One direction between two ranks; tensors are numbered in the order in which they travel."""

    peer: int
    group: dist.ProcessGroup
    pending: deque[Message] = field(default_factory=deque)
    num_tensors: int = 0

    def next_tag(self) -> int:
        self.num_tensors += 1
        return self.num_tensors


class Links:
    """Sends and receives of one rank.

    Args:
        crossings: values of every boundary between stages.
        rank_of: stage -> rank on the pipeline axis.
    """

    def __init__(
        self, mesh: RankMesh, crossings: Sequence[Sequence[Crossing]], rank_of: Callable[[int], int]
    ) -> None:
        self.device = mesh.device
        self._mesh = mesh
        self._crossings = crossings
        self._rank_of = rank_of
        self._here = mesh.here.pipeline
        self._incoming: dict[int, _Channel] = {}
        self._outgoing: dict[int, _Channel] = {}
        self._asked: dict[Message, _Asked] = {}
        self._kept: dict[Message, list[Tensor]] = {}
        self._sending: deque[tuple[dist.Work, Tensor]] = deque()

    def connect(self, traffic: Traffic) -> None:
        """Sends one empty greeting through every channel; a collective of the ranks on the pipeline axis.

        NCCL makes a connection at its first use, while both sides stand still: all in one order, no two wait
        for each other.
        """
        for sender, receiver in sorted(traffic):
            greeting = torch.zeros(1, device=self.device)
            if sender == self._here:
                dist.send(greeting, *self._line(receiver, self._group(sender, receiver)))
            elif receiver == self._here:
                dist.recv(greeting, *self._line(sender, self._group(sender, receiver)))

    def begin(self, traffic: Traffic) -> None:
        """Makes ready for the messages of one pass over a schedule."""
        assert not self._asked and not self._kept
        self._incoming, self._outgoing = {}, {}
        for (sender, receiver), messages in traffic.items():
            group = self._group(sender, receiver)
            if receiver == self._here:
                self._incoming[sender] = _Channel(self._line(sender, group)[0], group, deque(messages))
            elif sender == self._here:
                self._outgoing[receiver] = _Channel(self._line(receiver, group)[0], group)

    def ask(self, message: Message) -> None:
        """Begins to receive a message, and those that come before it through the same channel."""
        sender = self._rank_of(message.stage + (1 if message.is_gradient else -1))
        if sender == self._here or message in self._asked:
            return
        channel = self._incoming[sender]
        while message not in self._asked:
            self._receive(channel, channel.pending.popleft())

    def wait(self, message: Message) -> list[Tensor]:
        """The values of a message that was asked for, in the order of the crossings."""
        if message in self._kept:
            return self._kept.pop(message)
        asked = self._asked.pop(message)
        for work in asked.works:
            work.wait()
        return asked.values

    def send(self, message: Message, values: Sequence[Tensor]) -> None:
        """Begins to send the values of a message."""
        receiver = self._rank_of(message.stage)
        if receiver == self._here:
            self._kept[message] = list(values)
            return
        channel = self._outgoing[receiver]
        while self._sending and self._sending[0][0].is_completed():
            self._sending.popleft()
        for value in values:
            dense = value.contiguous()
            work = dist.isend(dense, channel.peer, group=channel.group, tag=channel.next_tag())
            assert work is not None
            self._sending.append((work, dense))

    def finish(self) -> None:
        """Waits until everything sent has left."""
        while self._sending:
            self._sending.popleft()[0].wait()

    def _receive(self, channel: _Channel, message: Message) -> None:
        asked = self._asked[message] = _Asked()
        boundary = self._crossings[message.stage if message.is_gradient else message.stage - 1]
        for crossing in boundary:
            if message.is_gradient and not crossing.has_gradient:
                continue
            value = torch.empty(crossing.shape, dtype=crossing.dtype, device=self.device)
            work = dist.irecv(value, channel.peer, group=channel.group, tag=channel.next_tag())
            assert work is not None
            asked.values.append(value)
            asked.works.append(work)

    def _group(self, sender: int, receiver: int) -> dist.ProcessGroup:
        group = self._mesh.pipeline_group if sender < receiver else self._mesh.backward_group
        assert group is not None
        return group

    def _line(self, pipeline: int, group: dist.ProcessGroup) -> tuple[int, dist.ProcessGroup]:
        here = self._mesh.here
        return self._mesh.rank_at(pipeline, here.data, here.tensor), group
