"""Timing on all ranks at once: what a rank reaches while the others do the same.

Processes that share cores, memory and links slow each other, and in training all are busy together. So every
rank runs the same calls the same number of times between two barriers, and the time is that of the slowest:
all the work done, divided by the time in which it was. The measurements take turns, so that a disturbance of
a moment falls on few repetitions of each. Work that only computes takes its processor time, times the ranks
that take turns on a core: a call shorter than a turn runs undisturbed more often than not, and pays for the
turns of the others now and then; and what other programs take of the cores is not counted.

In a step, what a piece of work reads was last used long ago, and other work has filled the caches since. Work
that is to be timed as it is then runs after the work that comes before it in a step; each call is timed by
itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from autopar.profile.spread import Spread, spread_of

_LEAST_REPETITIONS = 3
# Repetitions of tasks that run once in each, for each repetition of others.
_SINGLE = 3


@dataclass(frozen=True, slots=True)
class Task:
    """Something to time.

    Attributes:
        name: unique among the tasks of a run.
        computes: nothing is waited for: the ranks do not communicate.
        work: called again and again; on a GPU it may return before the device has finished.
    """

    name: str
    work: Callable[[], object]
    computes: bool = True


@dataclass(slots=True)
class Stopwatch:
    """Times tasks on this rank; every rank of the default process group runs the same ones.

    Attributes:
        device: where the work runs.
        window_s: least duration of one repetition.
        num_repetitions: of every task.
        tell: told what is measured, for whoever watches and for the message when it hangs.
        share: ranks that take turns on a core; None where computing takes no core (on a GPU).
        deadline_s: ``time.monotonic()`` after which no further round of repetitions begins, once each task
            has had three.
    """

    device: torch.device
    window_s: float
    num_repetitions: int
    tell: Callable[[str], None]
    share: float | None = None
    deadline_s: float = float("inf")

    def run(self, label: str, tasks: Sequence[Task]) -> dict[str, Spread]:
        """Seconds of one call of each task, of the slowest rank; the same on every rank."""
        assert len({task.name for task in tasks}) == len(tasks), "names of tasks must differ"
        counts = {}
        for task in tasks:
            self.tell(f"{label}: {task.name}")
            counts[task.name] = self._count(task)
        found: list[list[float]] = []
        for repetition in range(self.num_repetitions):
            if repetition >= _LEAST_REPETITIONS and self._is_late():
                break
            found.append([])
            for task in tasks:
                self.tell(f"{label}: {task.name}, repetition {repetition + 1}")
                found[-1].append(self._run(task, counts[task.name])[1] / counts[task.name])
        slowest = torch.tensor(found, dtype=torch.float64)
        self._agree(slowest)
        return {task.name: spread_of(row) for task, row in zip(tasks, slowest.t().tolist(), strict=True)}

    def run_in_order(self, label: str, tasks: Sequence[Task]) -> dict[str, Spread]:
        """Seconds of tasks that run once each, one after the other, again and again; the mean of all ranks:
        the slowest in a single short call is the one that something disturbed.
        """
        self.tell(label)
        self._in_order(tasks)  # warms up
        found: list[list[float]] = []
        for repetition in range(_SINGLE * self.num_repetitions):
            if repetition >= _LEAST_REPETITIONS and self._is_late():
                break
            found.append(self._in_order(tasks))
        mean = torch.tensor(found, dtype=torch.float64)
        if dist.get_world_size() > 1:
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        return {task.name: spread_of(row) for task, row in zip(tasks, mean.t().tolist(), strict=True)}

    def _count(self, task: Task) -> int:
        """Calls that fill the window, agreed on by all ranks; warms up on the way."""
        self._run(task, 1)
        calls, elapsed_s = 1, self._together(self._run(task, 1)[0])
        while elapsed_s < self.window_s / 4:
            calls *= 2 if elapsed_s > self.window_s / 32 else 8
            elapsed_s = self._together(self._run(task, calls)[0])
        return max(1, round(calls * self.window_s / elapsed_s))

    def _in_order(self, tasks: Sequence[Task]) -> list[float]:
        self._barrier()
        return [self._timed_s(task, 1) for task in tasks]

    def _run(self, task: Task, calls: int) -> tuple[float, float]:
        """Seconds of so many calls: as they passed, and as they count."""
        self._barrier()
        began_s = time.perf_counter()
        counted_s = self._timed_s(task, calls)
        return time.perf_counter() - began_s, counted_s

    def _timed_s(self, task: Task, calls: int) -> float:
        began_s, began_processor_s = time.perf_counter(), time.process_time()
        for _ in range(calls):
            task.work()
        self._finish()
        elapsed_s, processor_s = time.perf_counter() - began_s, time.process_time() - began_processor_s
        return elapsed_s if self.share is None or not task.computes else processor_s * self.share

    def _barrier(self) -> None:
        self._finish()
        if dist.get_world_size() > 1:
            dist.barrier()

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _together(self, value: float) -> float:
        tensor = torch.tensor([value], dtype=torch.float64)
        self._agree(tensor)
        return float(tensor[0])

    def _is_late(self) -> bool:
        return self._together(float(time.monotonic() > self.deadline_s)) > 0

    def _agree(self, values: torch.Tensor) -> None:
        """The largest of all ranks' values, in place."""
        if dist.get_world_size() > 1:
            shared = values.to(self.device) if self.device.type == "cuda" else values
            dist.all_reduce(shared, dist.ReduceOp.MAX)
            values.copy_(shared)
