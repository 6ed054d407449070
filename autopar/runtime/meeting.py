"""Where the ranks of a run find each other before anything is communicated: a store that all of them reach.

Under torchrun that is the store of its agent, which outlives every rank, so that the death of any of them can
be told. The agent keeps it through restarts, and what an earlier attempt has left there (addresses of
processes that are gone) must not be read again. Neither the number of restarts, which each node counts for
itself, nor the port tells one attempt from another; so rank 0 draws a name for each, and hands it to every
rank that shows it a number drawn just now.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from autopar.errors import DistributedError
from autopar.units import format_seconds

_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Meeting:
    """One attempt of a run, as one rank knows it.

    Attributes:
        store: of this attempt alone, for heartbeats and agreements.
        group_store: the same over another connection, for making process groups: a wait there leaves the
            heartbeats alone.
        place: address of the store, for messages.
    """

    rank: int
    size: int
    store: Store
    group_store: Store
    place: str


def meet(timeout_s: float, environment: Mapping[str, str] = os.environ) -> Meeting:
    """Finds the other ranks; alone where nothing says that there are any.

    Args:
        environment: with the variables that torchrun sets (``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR``,
            ``MASTER_PORT``).

    Raises:
        DistributedError: the store, or rank 0, does not answer in time.
    """
    if "WORLD_SIZE" not in environment:
        store = HashStore()
        return Meeting(0, 1, PrefixStore("run", store), PrefixStore("group", store), "this process")
    rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    is_kept_by_agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    keeps = rank == 0 and not is_kept_by_agent
    keeper = "torchrun" if is_kept_by_agent else "rank 0"
    timeout = timedelta(seconds=timeout_s)
    try:
        first = TCPStore(host, port, None, keeps, timeout, wait_for_workers=False, multi_tenant=True)
        second = TCPStore(host, port, None, False, timeout, wait_for_workers=False)
        name = _attempt(first, second, rank, size, timeout_s)
    except (RuntimeError, OSError) as error:
        raise DistributedError(
            f"rank {rank} does not reach the store that {keeper} keeps at {host}:{port}"
            f" ({str(error).splitlines()[0][:200]}): {keeper} has not started there, has given up waiting, or"
            " the network between is closed; look at the output of rank 0, and start the ranks within"
            f" {format_seconds(timeout_s)} (timeout_s) of each other"
        ) from error
    return Meeting(
        rank, size, PrefixStore(f"{name}/run", first), PrefixStore(f"{name}/group", second), f"{host}:{port}"
    )


def meet_in_group(timeout_s: float) -> Meeting:
    """The same for a process group that exists already; a collective of all of its ranks.

    Raises:
        DistributedError: a rank does not take part.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    timeout = timedelta(seconds=timeout_s)
    address: list[tuple[str, int] | None] = [None]
    store: Store | None = None
    if rank == 0:
        host = os.environ.get("MASTER_ADDR") or os.uname().nodename
        server = TCPStore("0.0.0.0", 0, None, True, timeout=timeout, wait_for_workers=False)
        store, address[0] = server, (host, server.port)
    try:
        if dist.get_backend() == "gloo":  # the only backend that can say which rank is missing
            dist.monitored_barrier(timeout=timeout, wait_all_ranks=True)
        dist.broadcast_object_list(address, src=0)
        assert address[0] is not None
        host, port = address[0]
        if store is None:
            store = TCPStore(host, port, None, False, timeout=timeout, wait_for_workers=False)
    except (RuntimeError, OSError) as error:
        raise DistributedError(
            f"rank {rank} waited for the others at the beginning of parallelize(), and not all of them came"
            f" ({str(error).splitlines()[0][:200]}); every rank of the process group calls parallelize():"
            " look at the output of the others"
        ) from error
    return Meeting(rank, size, store, store, f"{host}:{port}")


def _attempt(store: Store, other: Store, rank: int, size: int, timeout_s: float) -> str:
    own = uuid.uuid4().hex
    if rank == 0:
        welcome = threading.Thread(
            target=_welcome, args=(other, own, size, timeout_s), name="autopar-welcome", daemon=True
        )
        welcome.start()
        return own
    store.set(f"hello/{rank}", own)
    answer = f"welcome/{own}"
    end_s = time.monotonic() + timeout_s
    while not store.check([answer]):
        if time.monotonic() > end_s:
            raise RuntimeError(f"rank 0 did not come within {format_seconds(timeout_s)}")
        time.sleep(_POLL_S)
    name = store.get(answer).decode()
    store.set(f"{name}/arrived/{rank}", "")
    return name


def _welcome(store: Store, name: str, size: int, timeout_s: float) -> None:
    """Answers every rank, the ones that an earlier attempt has left behind included: nobody reads those."""
    expected, answered = set(range(1, size)), dict.fromkeys(range(1, size), b"")
    end_s = time.monotonic() + timeout_s
    with suppress(RuntimeError, OSError):  # the store has gone, and with it the run
        while expected and time.monotonic() < end_s:
            for rank in sorted(expected):
                hello = store.get(f"hello/{rank}") if store.check([f"hello/{rank}"]) else b""
                if hello != answered[rank]:
                    store.set(f"welcome/{hello.decode()}", name)
                    answered[rank] = hello
                if store.check([f"{name}/arrived/{rank}"]):
                    expected.discard(rank)
            time.sleep(_POLL_S)
