"""Who is where: every rank posts heartbeats, so that a wait that fails can name the ranks that it failed for.

A distributed wait that times out, or whose peer died, only says that *something* on the other side is gone.
Here each rank posts (step, action) into a store from a thread of its own; when a collective fails, the
survivors read the others' posts and raise a ``DistributedError`` that names who failed, who is gone and who
stands still.
"""

from __future__ import annotations

import atexit
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TypeVar

import torch.distributed as dist

from autopar.errors import AutoparError, DistributedError, UsageError
from autopar.runtime.agreement import agree, come_together, first_line, stay_until_read
from autopar.runtime.meeting import Meeting
from autopar.runtime.reports import Report, View, post, read
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
        self._meeting = meeting
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
        self._num_gatherings = 0
        self._error = ""
        self._is_cause = False
        self._deaf: frozenset[int] = frozenset()
        self._is_cut_off = False
        self._host = platform.node()
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._end_words = ""
        self._stopped = threading.Event()
        self._post()
        self._thread = threading.Thread(target=self._run, name="autopar-watchdog", daemon=True)
        self._thread.start()
        atexit.register(self.stop, "has ended")

    def at(self, action: str) -> None:
        """Notes what this rank begins now."""
        self._action = action
        self._moves += 1
        self._moved_at_s = time.monotonic()

    @contextmanager
    def guard(self, action: str) -> Iterator[None]:
        """Watches a piece of distributed work.

        Raises:
            UsageError: the model is closed.
            DistributedError: a wait failed; names the ranks.
        """
        if self.is_stopped:
            raise UsageError(f"{action}: the model is closed; call close() after everything else")
        self.at(action)
        self._is_waiting = True
        try:
            yield
        except Exception as error:
            if isinstance(error, DistributedError):
                raise
            if isinstance(error, AutoparError) or not is_communication_error(error):
                self._fail(f"{type(error).__name__}: {first_line(error)}", is_cause=True)
                self._linger()
                raise
            self._fail(first_line(error), is_cause=False)
            message = self.explain(first_line(error))
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
            f"{with_error}: {blamed}. Look at the output of the ranks named; a collective waits"
            f" {format_seconds(self._timeout_s)} (timeout_s) before it gives up"
        )

    @property
    def is_stopped(self) -> bool:
        """Whether ``stop`` was called."""
        return self._stopped.is_set()

    def stop(self, end: str = "has called close()") -> None:
        """Ends the heartbeats.

        Args:
            end: what the other ranks shall read of it, where they wait for this one.
        """
        if self.is_stopped:
            return
        atexit.unregister(self.stop)
        self._end_words = end
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
        agree(self._meeting, name, values, self._timeout_s, self._linger_s)

    def gather(self, call: str) -> None:
        """Waits, inside ``guard``, until every rank makes the same call; for what is too rare to be slow."""
        self._num_gatherings += 1
        come_together(self._meeting, f"gathering/{self._num_gatherings}/{call}", self._timeout_s)

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
        with suppress(RuntimeError, OSError):
            self._post()

    def _end(self, reason: str, is_cause: bool) -> None:
        """Ends the process from the thread of the heartbeats, whatever the main thread is doing."""
        self._fail(reason, is_cause)
        text = reason if not is_cause else f"rank {self._rank} stops in {self._action}: {reason}"
        sys.stderr.write(f"autopar: {text}\n")
        sys.stderr.flush()
        os._exit(DistributedError.exit_status)

    def _post(self) -> None:
        post(
            self._store,
            Report(
                rank=self._rank,
                host=self._host,
                pulse=self._pulse,
                moves=self._moves,
                action=self._action,
                is_waiting=self._is_waiting,
                error=self._error,
                is_cause=self._is_cause,
                end=self._end_words,
            ),
        )

    def _fail(self, error: str, is_cause: bool) -> None:
        self._error, self._is_cause = error, is_cause
        with suppress(RuntimeError, OSError):
            self._ask_store(self._post)

    def _linger(self) -> None:
        self._ask_store(lambda: stay_until_read(self._meeting, "explained", self._deaf, self._linger_s))

    @property
    def _linger_s(self) -> float:
        return 2 * self._grace_s

    def _blame(self) -> str:
        """Watches the others for a while; says who of them is to blame."""
        before = [report.pulse for report in self._read()]
        began_s = time.monotonic()
        while True:
            time.sleep(self._interval_s)
            view = View(self._rank, before, self._read())
            waited_s = time.monotonic() - began_s
            if waited_s > self._grace_s or (not view.alive and waited_s > 4 * self._interval_s):
                break
        self._deaf = view.deaf
        return view.blame()

    def _read(self) -> list[Report]:
        return [read(self._store, rank) for rank in range(self._size)]


def is_communication_error(error: BaseException) -> bool:
    """Whether an error means that another rank did not answer, not that this one did something wrong."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _COMMUNICATION_WORDS)
