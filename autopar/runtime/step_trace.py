"""One step as every rank ran it, next to the step as the simulator plays it, for Perfetto (ui.perfetto.dev).

The file is in Chrome's trace event format (JSON object format of the Trace Event Format document). Process 0
shows what was measured, one row a rank; process 1 the same schedule played with the mean measured time of
each stage's actions, and messages that take no time. What is longer in the first than in the second is
waiting: for messages, or for each other.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from autopar.runtime.executor import Executor
from autopar.runtime.mesh import RankMesh
from autopar.runtime.messages import Schedule
from autopar.schedule.actions import Action, ActionKind
from autopar.schedule.simulator import simulate

_MEASURED, _SIMULATED = 0, 1


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a step.

    Attributes:
        name: of work that is no action; "" for actions.
        start_s, end_s: since the step began, on this rank's device.
    """

    action: Action | None
    name: str
    start_s: float
    end_s: float


class StepTrace:
    """Notes when the pieces of one step of this rank begin and end.

    Args:
        path: file that rank 0 writes.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self._path = path
        self._clock = _GpuClock(device) if device.type == "cuda" else _Clock()
        self._noted: list[tuple[Action | None, str, Any, Any]] = []

    def begin(self, mesh: RankMesh) -> None:
        """Begins the step on all ranks at once; a collective of them."""
        dist.barrier(group=mesh.world_group)
        self._clock.begin()

    @contextmanager
    def action(self, action: Action) -> Iterator[None]:
        """Around an action of the schedule."""
        begun = self._clock.now()
        yield
        self._noted.append((action, "", begun, self._clock.now()))

    @contextmanager
    def work(self, name: str) -> Iterator[None]:
        """Around other work."""
        begun = self._clock.now()
        yield
        self._noted.append((None, name, begun, self._clock.now()))

    def write(self, mesh: RankMesh, schedule: Schedule, num_stages: int) -> None:
        """Collects the spans of all ranks, and writes them; a collective of them."""
        own = [
            Span(action, name, self._clock.seconds(begun), self._clock.seconds(ended))
            for action, name, begun, ended in self._noted
        ]
        spans: list[tuple[int, list[Span]]] = [(0, [])] * mesh.size
        dist.all_gather_object(spans, (mesh.here.pipeline, own), group=mesh.world_group)
        if mesh.rank != 0:
            return
        events = [*_names(_MEASURED, "measured", range(mesh.size), "rank")]
        for rank, (_, found) in enumerate(spans):
            events += [_event(_MEASURED, rank, span) for span in found]
        events += _simulated([span for _, found in spans for span in found], schedule, num_stages)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}) + "\n")


class SecondStep:
    """Records the second step of a process, if that was asked for.

    Args:
        path: of the trace; None for none.
        executor: of the steps.
        num_micro_batches: of a step.
    """

    def __init__(self, path: Path | None, executor: Executor, mesh: RankMesh, num_micro_batches: int) -> None:
        self._path = path
        self._executor = executor
        self._mesh = mesh
        self._num_micro_batches = num_micro_batches
        self._num_steps = 0

    @contextmanager
    def around(self) -> Iterator[Callable[[str], AbstractContextManager[None]]]:
        """Around a step; yields what goes around work that is no action."""
        executor = self._executor
        if self._path is None or self._num_steps != 1:
            yield lambda _: nullcontext()
        else:
            trace = StepTrace(self._path, self._mesh.device)
            watching, executor.observer = executor.observer, trace.action
            trace.begin(self._mesh)
            try:
                yield trace.work
            finally:
                executor.observer = watching
            trace.write(self._mesh, executor.schedule(self._num_micro_batches), executor.num_stages)
        self._num_steps += 1


class _Clock:
    """Seconds since the step began."""

    def __init__(self) -> None:
        self._begun_s = 0.0

    def begin(self) -> None:
        self._begun_s = time.perf_counter()

    def now(self) -> Any:
        return time.perf_counter() - self._begun_s

    def seconds(self, moment: Any) -> float:
        return float(moment)


class _GpuClock(_Clock):
    """Moments on the GPU's own stream, so that nothing has to wait for the measurement."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._base = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        torch.cuda.synchronize(self._device)
        self._base.record()

    def now(self) -> Any:
        moment = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        moment.record()
        return moment

    def seconds(self, moment: Any) -> float:
        moment.synchronize()
        return float(self._base.elapsed_time(moment)) / 1e3


def _simulated(spans: Sequence[Span], schedule: Schedule, num_stages: int) -> list[dict[str, Any]]:
    means = _mean_seconds(spans)

    def of(kind: ActionKind) -> list[float]:
        return [means.get((stage, kind), 0.0) for stage in range(num_stages)]

    weight_s = of(ActionKind.WEIGHT_BACKWARD)
    whole_s, input_s = of(ActionKind.BACKWARD), of(ActionKind.INPUT_BACKWARD)
    backward_s = [sum(parts) for parts in zip(whole_s, input_s, weight_s, strict=True)]
    no_messages = [0.0] * (num_stages - 1)
    timeline = simulate(schedule, of(ActionKind.FORWARD), backward_s, no_messages, weight_s)
    events = _names(_SIMULATED, "simulated with the measured times", range(len(schedule)), "pipeline rank")
    for rank, own in enumerate(timeline.events):
        events += [
            _event(_SIMULATED, rank, Span(event.action, "", event.start_s, event.end_s)) for event in own
        ]
    return events


def _mean_seconds(spans: Sequence[Span]) -> Mapping[tuple[int, ActionKind], float]:
    taken: dict[tuple[int, ActionKind], list[float]] = {}
    for span in spans:
        if span.action is not None:
            taken.setdefault((span.action.stage, span.action.kind), []).append(span.end_s - span.start_s)
    return {key: sum(values) / len(values) for key, values in taken.items()}


def _names(process: int, name: str, rows: range, row_name: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "pid": process, "args": {"name": name}}
    ]
    for row in rows:
        args = {"name": f"{row_name} {row}"}
        events.append({"name": "thread_name", "ph": "M", "pid": process, "tid": row, "args": args})
    return events


def _event(process: int, row: int, span: Span) -> dict[str, Any]:
    event = {
        "name": str(span.action or span.name),
        "cat": span.action.kind.words if span.action else "work",
        "ph": "X",
        "pid": process,
        "tid": row,
        "ts": span.start_s * 1e6,
        "dur": (span.end_s - span.start_s) * 1e6,
    }
    if span.action is not None:
        event["args"] = {"stage": span.action.stage, "micro_batch": span.action.micro_batch}
    return event
