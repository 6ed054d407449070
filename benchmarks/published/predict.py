"""Predictions of published runs by the product's own path: model file, capture, pinned plan, cost model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from published.express import Expressed, express, pinned_plan
from published.runs import Run
from published.trivial import trivial_step_s

from autopar.capture.capture import Capture, capture
from autopar.capture.target import load_target
from autopar.cost.blocks import Readings
from autopar.hardware.cluster import Cluster
from autopar.planner.check import DTYPES, predict_plan

_MODEL = Path(__file__).with_name("language_model.py")


@dataclass(frozen=True, slots=True)
class Predicted:
    """One run and what is said of it.

    Attributes:
        step_s: by the cost model.
        trivial_s: by the trivial model.
        peak_memory_bytes: of the fullest device.
        compute_s: of the first stage, beside what it waits for communication and for other stages.
    """

    run: Run
    step_s: float
    trivial_s: float
    peak_memory_bytes: int
    compute_s: float
    comm_s: float
    idle_s: float


@dataclass(slots=True)
class Predictor:
    """Captures a model once for all its runs, and reads a block once for all plans that run it alike."""

    readings: dict[int, Readings] = field(default_factory=dict)
    model: str = ""
    captured: Capture | None = None

    def all_of(self, runs: Iterable[Run]) -> Iterator[Predicted]:
        """Predictions, the runs of one model after another, so that one capture is held at a time."""
        for expressed in sorted(map(express, runs), key=_model_key):
            yield self.predict(expressed)

    def predict(self, expressed: Expressed) -> Predicted:
        """One run."""
        run, cluster = expressed.run, expressed.cluster
        graph = self.capture(expressed).at(run.micro_batch)
        plan = pinned_plan(run, [block.name for block in graph.blocks])
        found = predict_plan(plan, graph, cluster, cluster.device.memory_bytes, self.readings_of(cluster))
        first = found.stages[0]
        return Predicted(
            run,
            step_s=found.step_time_s,
            trivial_s=trivial_step_s(run, cluster.device.peak(expressed.precision)),
            peak_memory_bytes=found.peak_memory_bytes,
            compute_s=first.compute_s,
            comm_s=first.comm_s,
            idle_s=first.idle_s,
        )

    def capture(self, expressed: Expressed) -> Capture:
        """The model of a run; captured again only where it differs from the last one's."""
        key = _model_key(expressed)
        if self.captured is None or key != self.model:
            source = load_target(str(_MODEL), expressed.arguments)
            self.model, self.captured = key, capture(source, DTYPES[expressed.precision])
        return self.captured

    def readings_of(self, cluster: Cluster) -> Readings:
        """Blocks that have been read for a cluster."""
        return self.readings.setdefault(id(cluster), Readings(cluster))


def _model_key(expressed: Expressed) -> str:
    return f"{sorted(expressed.arguments.items())} {expressed.precision}"
