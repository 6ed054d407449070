"""Averaging replicated gradients while the backward pass of the last micro-batch still goes on.

As in DistributedDataParallel (Li et al. 2020, arXiv 2006.15704, section 3.2): buckets in the reverse order of
the parameters, each sent as soon as all of its gradients are there, and in order, so that the ranks agree.
The first is small, so that sending begins early. None is more than a quarter of all: little is left for the
end, and little memory is taken by what is sent. Averages stay in the memory in which they travelled, of which
the gradients become views: nothing is copied back, and no gradient is held twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from autopar.runtime.storage import local_tensor, rewrap
from autopar.units import MiB

# DistributedDataParallel's defaults.
_FIRST_BUCKET_BYTES = 1 * MiB
_BUCKET_BYTES = 25 * MiB
_LARGEST_SHARE = 4


class OverlappedAverage:
    """The gradients of one stage's parameters.

    Args:
        parameters: in the order in which the forward pass uses them; every use is in this stage.
        group: the data ranks.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup) -> None:
        self._group = group
        self._buckets = _buckets(parameters)
        self._bucket_of = {id(p): index for index, bucket in enumerate(self._buckets) for p in bucket}
        self._is_begun = False
        self._waiting: list[set[int]] = []
        self._num_sent = 0
        self._sent: list[dist.Work] = []

    def begin(self) -> None:
        """The next backward pass completes the gradients: from here on, ``note`` may send them."""
        self._is_begun = True
        self._waiting = [{id(parameter) for parameter in bucket} for bucket in self._buckets]

    def note(self, parameter: Tensor) -> None:
        """The gradient of ``parameter`` has come."""
        if not self._is_begun:
            return
        self._waiting[self._bucket_of[id(parameter)]].discard(id(parameter))
        while self._num_sent < len(self._buckets) and not self._waiting[self._num_sent]:
            self._send()

    def finish(self) -> None:
        """Sends what is left, and waits until all gradients are averages."""
        while self._num_sent < len(self._buckets):
            self._send()
        for work in self._sent:
            work.wait()
        self._is_begun, self._num_sent, self._sent = False, 0, []

    def _send(self) -> None:
        held = [p for p in self._buckets[self._num_sent] if p.grad is not None]
        self._num_sent += 1
        if not held:
            return
        local = local_tensor(held[0].detach())
        flat = local.new_empty(sum(local_tensor(p.detach()).numel() for p in held))
        factor, offset = 1 / dist.get_world_size(self._group), 0
        for parameter in held:
            assert parameter.grad is not None
            gradient = local_tensor(parameter.grad)
            piece = flat.narrow(0, offset, gradient.numel()).view(gradient.shape)
            torch.mul(gradient, factor, out=piece)
            parameter.grad = rewrap(parameter, piece)  # lets the other one go
            offset += gradient.numel()
        work = dist.all_reduce(flat, group=self._group, async_op=True)
        assert work is not None
        self._sent.append(work)


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    trained = [(p, local_tensor(p.detach()).nbytes) for p in reversed(parameters) if p.requires_grad]
    usual_bytes = min(_BUCKET_BYTES, sum(num_bytes for _, num_bytes in trained) / _LARGEST_SHARE)
    buckets: list[list[nn.Parameter]] = []
    filled_bytes = 0
    for parameter, num_bytes in trained:
        most_bytes = min(_FIRST_BUCKET_BYTES, usual_bytes) if len(buckets) == 1 else usual_bytes
        if not buckets or filled_bytes + num_bytes > most_bytes or buckets[-1][0].dtype != parameter.dtype:
            buckets.append([])
            filled_bytes = 0
        buckets[-1].append(parameter)
        filled_bytes += num_bytes
    return buckets
