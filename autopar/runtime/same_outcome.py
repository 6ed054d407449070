"""What one rank finds wrong, told by all of them, instead of leaving the others waiting for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from autopar.errors import DistributedError, UsageError


@contextmanager
def same_outcome(action: str, group: dist.ProcessGroup) -> Iterator[None]:
    """Around work of each rank by itself; a collective of all ranks at its end.

    Args:
        action: what the ranks do, for the message of one that the system hinders.
        group: of all ranks; its time-out is that of the wait.

    Raises:
        UsageError: of any rank, on every rank.
        DistributedError: any rank met an ``OSError``; names it.
    """
    mistake, failure = "", ""
    try:
        yield
    except UsageError as error:
        mistake = str(error)
    except OSError as error:
        failure = str(error)
    found: list[tuple[str, str]] = [("", "")] * dist.get_world_size(group)
    dist.all_gather_object(found, (mistake, failure), group=group)
    for rank, (mistake, failure) in enumerate(found):
        if mistake:
            raise UsageError(mistake)
        if failure:
            raise DistributedError(f"rank {rank} could not {action}: {failure}")
