"""Who is where: every rank posts heartbeats, so that a wait that fails can name the ranks that it failed for.

A distributed wait that times out, or whose peer died, only says that *something* on the other side is gone.
Here each rank posts (step, action) into a store from a thread of its own; when a collective fails, the
survivors read the others' posts and raise a ``DistributedError`` that names who failed, who is gone and who
stands still.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from autopar.errors import AutoparError, DistributedError
from autopar.runtime.meeting import Meeting
from autopar.units import format_seconds

_Answer = TypeVar("_Answer")

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
        host: name of its machine.
        pulse: counts up while the process lives.
        moves: counts actions begun.
        action: what it does or did last, for people.
        is_waiting: it takes part in something distributed; else it does what is its own business.
        error: first line of the error that stopped it, or "".
        is_cause: the error is its own, not a wait for somebody else.
    """

    rank: int
    host: str = ""
    pulse: int = -1
    moves: int = -1
    action: str = "starting"
    is_waiting: bool = False
    error: str = ""
    is_cause: bool = False


class Watchdog:
    """Posts this rank's heartbeats, and explains failures by those of the others.

    Under torchrun it also ends this rank when torchrun itself is gone: nobody else would.

    Args:
        meeting: of the ranks; its store is used by this object alone.
        timeout_s: of the collectives.
        interval_s: between heartbeats.
        least_grace_s: without a heartbeat before a rank counts as gone.
    """

    def __init__(
        self, meeting: Meeting, timeout_s: float, interval_s: float = 0.5, least_grace_s: float = 3.0
    ) -> None:
        self._store, self._place = meeting.store, meeting.place
        self._rank, self._size = meeting.rank, meeting.size
        self._timeout_s = timeout_s
        self._interval_s = interval_s
        self._grace_s = max(least_grace_s, 6 * interval_s)
        self._pulse = 0
        self._moves = 0
        self._action = "between steps"
        self._moved_at_s = time.monotonic()
        self._is_waiting = False
        self._error = ""
        self._is_cause = False
        self._deaf: frozenset[int] = frozenset()
        self._is_cut_off = False
        self._host = platform.node()
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
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
        blamed = (
            f"the store of the heartbeats at {self._place} does not answer: its host or the network is down"
        )
        try:
            blamed = self._ask_store(self._blame) or blamed
        except (RuntimeError, OSError):
            blamed = (
                f"the process that keeps the heartbeats at {self._place} is gone: rank 0, or its torchrun"
            )
        return (
            f"{with_error}: {blamed}. Look at the output of that rank; a collective waits"
            f" {format_seconds(self._timeout_s)} (timeout_s) before it gives up"
        )

    def stop(self) -> None:
        """Ends the heartbeats."""
        self.at("close()")
        self._stopped.set()
        self._thread.join(timeout=5)

    def agree(self, name: str, values: Mapping[str, str]) -> None:
        """Checks that every rank brings the same values; no collective is used.

        Args:
            name: key of this agreement.
            values: what is compared, in words -> its value on this rank.

        Raises:
            DistributedError: ranks differ, or have not come within the time-out.
        """
        try:
            found = self._exchange(name, json.dumps(dict(values)))
        except (RuntimeError, OSError) as error:
            raise DistributedError(
                f"rank {self._rank} came to compare its {' and '.join(values)} with the other ranks, and the"
                f" store at {self._place} has gone ({_first_line(error)}): rank 0 has ended, or has waited"
                f" longer than {format_seconds(self._timeout_s)} (timeout_s); look at its output"
            ) from error
        missing = [rank for rank, text in enumerate(found) if text is None]
        if missing:
            raise DistributedError(
                f"{_ranks(missing)} did not start within {format_seconds(self._timeout_s)}; look at their"
                " output"
            )
        brought: list[dict[str, str]] = [json.loads(text or "{}") for text in found]
        differing = [what for what in values if len({one.get(what) for one in brought}) > 1]
        if differing:
            counts: dict[tuple[str | None, ...], list[int]] = {}
            for rank, one in enumerate(brought):
                counts.setdefault(tuple(one.get(what) for what in differing), []).append(rank)
            majority = max(counts.values(), key=lambda ranks: (len(ranks), -ranks[0]))
            others = [rank for ranks in counts.values() if ranks is not majority for rank in ranks]
            raise DistributedError(
                f"{' and '.join(differing)} of {_ranks(sorted(others))} differ from those of"
                f" {_ranks(majority)}; give every rank the same plan file, model code and arguments"
            )

    def _exchange(self, name: str, text: str) -> list[str | None]:
        """What each rank brings, None where it has not come in time."""
        self._store.set(f"{name}/{self._rank}", text)
        found = self._wait_for([f"{name}/{rank}" for rank in range(self._size)], self._timeout_s)
        if len(set(found)) > 1:
            self._stay_until_read(name, [rank for rank, text in enumerate(found) if text is None])
        return found

    def _ask_store(self, question: Callable[[], _Answer]) -> _Answer | None:
        """The answer to what needs the store; None where a network that is cut leaves it without one."""
        answers: list[_Answer] = []
        errors: list[Exception] = []

        def ask() -> None:
            try:
                answers.append(question())
            except Exception as error:
                errors.append(error)

        if self._is_cut_off:
            return None
        thread = threading.Thread(target=ask, name="autopar-explains", daemon=True)
        thread.start()
        thread.join(timeout=3 * self._grace_s)
        self._is_cut_off = thread.is_alive()
        if errors:
            raise errors[0]
        return answers[0] if answers else None

    def _wait_for(self, keys: list[str], timeout_s: float) -> list[str | None]:
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s and not self._store.check(keys):
            time.sleep(0.02)
        if self._store.check(keys):
            return [value.decode() for value in self._store.multi_get(keys)]
        return [self._store.get(key).decode() if self._store.check([key]) else None for key in keys]

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            if self._launcher is not None and os.getppid() != self._launcher:
                self._end("torchrun, which started it, is gone", is_cause=True)
            # A wait on a GPU does not raise: what has stood still for longer than any time-out is ended here.
            stood_s = time.monotonic() - self._moved_at_s
            if self._is_waiting and not self._error and stood_s > self._timeout_s + 20:
                self._end(self.explain("no progress"), is_cause=False)
            self._pulse += 1
            try:
                self._post()
            except (RuntimeError, OSError):
                return  # the store goes away when its host ends

    def _end(self, reason: str, is_cause: bool) -> None:
        """Ends the process from the thread of the heartbeats, whatever the main thread is doing."""
        self._fail(reason, is_cause)
        text = reason if not is_cause else f"rank {self._rank} stops in {self._action}: {reason}"
        sys.stderr.write(f"autopar: {text}\n")
        sys.stderr.flush()
        os._exit(DistributedError.exit_status)

    def _post(self) -> None:
        report = {
            "host": self._host,
            "pulse": self._pulse,
            "moves": self._moves,
            "action": self._action,
            "is_waiting": self._is_waiting,
            "error": self._error,
            "is_cause": self._is_cause,
        }
        self._store.set(f"heartbeat/{self._rank}", json.dumps(report))

    def _fail(self, error: str, is_cause: bool) -> None:
        self._error, self._is_cause = error, is_cause
        with suppress(RuntimeError, OSError):
            self._ask_store(self._post)

    def _linger(self) -> None:
        self._ask_store(lambda: self._stay_until_read("explained", self._deaf))

    def _stay_until_read(self, what: str, deaf: Collection[int]) -> None:
        # Where the store lives in rank 0, it stays until the others have read why they stop.
        with suppress(RuntimeError, OSError):
            self._store.set(f"{what}/read/{self._rank}", "")
            if self._rank == 0:
                alive = [rank for rank in range(self._size) if rank not in deaf]
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
        causes = [report for report in now if report.is_cause]
        still = [report for report in silent if report not in gone]
        # Who waits, too, has yet to find out; who does not is the one that is waited for.
        still = [report for report in still if not report.is_waiting] or still
        self._deaf = frozenset(x.rank for x in (*gone, *still) if x in gone or not x.is_waiting)
        names = _names(now)
        if causes:
            return "; ".join(f"{names[x.rank]} failed in {x.action}: {x.error}" for x in causes)
        if gone:
            return "; ".join(
                f"{names[x.rank]} is gone (no heartbeat), its last action was {x.action}" for x in gone
            )
        if still:
            return "; ".join(f"{names[x.rank]} is alive but stands still in {x.action}" for x in still)
        last = min((report for report in now if report.rank != self._rank), key=lambda x: x.moves)
        return f"every rank waits; the one that came least far is {names[last.rank]}, in {last.action}"


def is_communication_error(error: BaseException) -> bool:
    """Whether an error means that another rank did not answer, not that this one did something wrong."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _COMMUNICATION_WORDS)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(str(rank) for rank in ranks[:8]) + (", …" if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"


def _names(reports: list[Report]) -> list[str]:
    """How to call each rank: with its machine where there are several."""
    several = len({report.host for report in reports if report.host}) > 1
    return [f"rank {x.rank} (on {x.host})" if several and x.host else f"rank {x.rank}" for x in reports]
