"""Who is where: every rank posts heartbeats, so that a wait that fails can name the ranks that it failed for.

A distributed wait that times out, or whose peer died, only says that *something* on the other side is gone.
Here each rank posts (step, action) into a store from a thread of its own; when a collective fails, the
survivors read the others' posts and raise a ``DistributedError`` that names who failed, who is gone and who
stands still.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from autopar.errors import AutoparError, DistributedError
from autopar.units import format_seconds

_COMMUNICATION_WORDS = (
    "gloo",
    "nccl",
    "connection closed",
    "connection reset",
    "broken pipe",
    "timed out",
    "timeout",
    "socket",
    "process group",
)


@dataclass(frozen=True, slots=True)
class Report:
    """What one rank last posted.

    Attributes:
        pulse: counts up while the process lives.
        moves: counts actions begun.
        action: what it does or did last, for people.
        error: first line of the error that stopped it, or "".
        is_cause: the error is its own, not a wait for somebody else.
    """

    rank: int
    pulse: int = -1
    moves: int = -1
    action: str = "starting"
    error: str = ""
    is_cause: bool = False


class Watchdog:
    """Posts this rank's heartbeats, and explains failures by those of the others.

    Args:
        store: reached by every rank; used by this object alone.
        timeout_s: of the collectives.
        interval_s: between heartbeats.
    """

    def __init__(self, store: Store, rank: int, size: int, timeout_s: float, interval_s: float = 0.5) -> None:
        self._store = store
        self._rank = rank
        self._size = size
        self._timeout_s = timeout_s
        self._interval_s = interval_s
        self._grace_s = max(3.0, 6 * interval_s)
        self._pulse = 0
        self._moves = 0
        self._action = "between steps"
        self._moved_at_s = time.monotonic()
        self._is_waiting = False
        self._error = ""
        self._is_cause = False
        self._gone: frozenset[int] = frozenset()
        self._stopped = threading.Event()
        self._post()
        self._thread = threading.Thread(target=self._run, name="autopar-watchdog", daemon=True)
        self._thread.start()

    def at(self, action: str) -> None:
        """Notes what this rank begins now."""
        self._action = action
        self._moves += 1
        self._moved_at_s = time.monotonic()

    @contextmanager
    def guard(self, action: str) -> Iterator[None]:
        """Watches a piece of distributed work.

        Raises:
            DistributedError: a wait failed; names the ranks.
        """
        self.at(action)
        self._is_waiting = True
        try:
            yield
        except Exception as error:
            if isinstance(error, DistributedError):
                raise
            if isinstance(error, AutoparError) or not is_communication_error(error):
                self._fail(f"{type(error).__name__}: {_first_line(error)}", is_cause=True)
                self._linger()
                raise
            self._fail(_first_line(error), is_cause=False)
            message = self.explain(_first_line(error))
            self._linger()
            raise DistributedError(message) from error
        finally:
            self._is_waiting = False
        self.at(f"between steps, after {action}")

    def explain(self, cause: str) -> str:
        """A message that names the ranks to blame for a wait of this rank that failed."""
        with_error = f"rank {self._rank} stopped waiting in {self._action} ({cause})"
        try:
            blamed = self._blame()
        except (RuntimeError, OSError):
            blamed = "the rank that keeps the heartbeats, rank 0, is gone"
        return (
            f"{with_error}: {blamed}. Look at the output of that rank; a collective waits"
            f" {format_seconds(self._timeout_s)} (timeout_s) before it gives up"
        )

    def stop(self) -> None:
        """Ends the heartbeats."""
        self._stopped.set()
        self._thread.join(timeout=5)

    def agree(self, name: str, value: str, what: str) -> None:
        """Checks that every rank brings the same value; no collective is used.

        Args:
            name: key of this agreement.
            value: of this rank.
            what: is compared, for the message.

        Raises:
            DistributedError: ranks differ, or have not come within the time-out.
        """
        self._store.set(f"{name}/{self._rank}", value)
        keys = [f"{name}/{rank}" for rank in range(self._size)]
        values = self._wait_for(keys, self._timeout_s)
        missing = [rank for rank, found in enumerate(values) if found is None]
        if len(set(values)) > 1:
            self._stay_until_read(name, missing)
        if missing:
            raise DistributedError(
                f"{_ranks(missing)} did not start within {format_seconds(self._timeout_s)}; look at their"
                " output"
            )
        counts: dict[str, list[int]] = {}
        for rank, found in enumerate(values):
            counts.setdefault(found or "", []).append(rank)
        if len(counts) > 1:
            majority = max(counts.values(), key=lambda ranks: (len(ranks), -ranks[0]))
            others = [rank for ranks in counts.values() if ranks is not majority for rank in ranks]
            raise DistributedError(
                f"{what} of {_ranks(sorted(others))} differ from those of {_ranks(majority)};"
                " give every rank the same plan file, model code and arguments"
            )

    def _wait_for(self, keys: list[str], timeout_s: float) -> list[str | None]:
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s and not all(self._store.check([key]) for key in keys):
            time.sleep(0.02)
        return [self._store.get(key).decode() if self._store.check([key]) else None for key in keys]

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            self._pulse += 1
            try:
                self._post()
            except (RuntimeError, OSError):
                return  # the store goes away when its host ends
            # A wait on a GPU does not raise: what has stood still for longer than any time-out is ended here.
            stood_s = time.monotonic() - self._moved_at_s
            if self._is_waiting and not self._error and stood_s > self._timeout_s + 20:
                sys.stderr.write(f"autopar: {self.explain('no progress')}\n")
                sys.stderr.flush()
                os._exit(DistributedError.exit_status)

    def _post(self) -> None:
        report = {
            "pulse": self._pulse,
            "moves": self._moves,
            "action": self._action,
            "error": self._error,
            "is_cause": self._is_cause,
        }
        self._store.set(f"heartbeat/{self._rank}", json.dumps(report))

    def _fail(self, error: str, is_cause: bool) -> None:
        self._error, self._is_cause = error, is_cause
        with suppress(RuntimeError, OSError):
            self._post()

    def _linger(self) -> None:
        self._stay_until_read("explained", self._gone)

    def _stay_until_read(self, what: str, gone: Collection[int]) -> None:
        # The store lives in rank 0: it stays until the others have read why they stop.
        with suppress(RuntimeError, OSError):
            self._store.set(f"{what}/read/{self._rank}", "")
            if self._rank == 0:
                alive = [rank for rank in range(self._size) if rank not in gone]
                self._wait_for([f"{what}/read/{rank}" for rank in alive], 2 * self._grace_s)

    def _read(self, rank: int) -> Report:
        key = f"heartbeat/{rank}"
        if not self._store.check([key]):
            return Report(rank)
        fields: dict[str, Any] = json.loads(self._store.get(key))
        return Report(rank, **fields)

    def _blame(self) -> str:
        before = [self._read(rank) for rank in range(self._size)]
        began_s = time.monotonic()
        while True:
            time.sleep(self._interval_s)
            now = [self._read(rank) for rank in range(self._size)]
            silent = [report for report in now if not report.error and report.rank != self._rank]
            gone = [report for report in silent if report.pulse <= before[report.rank].pulse]
            waited_s = time.monotonic() - began_s
            if waited_s > self._grace_s or (len(silent) == len(gone) and waited_s > 4 * self._interval_s):
                break
        self._gone = frozenset(report.rank for report in gone)
        causes = [report for report in now if report.is_cause]
        still = [report for report in silent if report not in gone]
        if causes:
            return "; ".join(f"rank {x.rank} failed in {x.action}: {x.error}" for x in causes)
        if gone:
            return "; ".join(f"rank {x.rank} is gone, its last action was {x.action}" for x in gone)
        if still:
            return "; ".join(f"rank {x.rank} is alive but stands still in {x.action}" for x in still)
        last = min((report for report in now if report.rank != self._rank), key=lambda x: x.moves)
        return f"every rank waits; the one that came least far is rank {last.rank}, in {last.action}"


def is_communication_error(error: BaseException) -> bool:
    """Whether an error means that another rank did not answer, not that this one did something wrong."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _COMMUNICATION_WORDS)


def open_store(rank: int, size: int, timeout_s: float) -> Store:
    """A store of its own for the watchdog, kept by rank 0; a collective of the default process group."""
    timeout = timedelta(seconds=timeout_s)
    address: list[Any] = [None]
    store: Store | None = None
    if rank == 0:
        host = os.environ.get("MASTER_ADDR") or socket.gethostname()
        server = TCPStore("0.0.0.0", 0, None, True, timeout=timeout, wait_for_workers=False)
        store, address[0] = server, (host, server.port)
    dist.broadcast_object_list(address, src=0)
    if store is None:
        host, port = address[0]
        store = TCPStore(host, port, None, False, timeout=timeout, wait_for_workers=False)
    return store


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(str(rank) for rank in ranks[:8]) + (", …" if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"
