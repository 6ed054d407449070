"""One layer of Megatron and the activations of its first stage, against Korthikanti et al. 2022."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from published.express import express, pinned_plan
from published.predict import Predictor
from published.runs import Run, read_runs

from autopar.cost.choice import BlockChoice
from autopar.lower.resolve import resolve
from autopar.planner.check import predict_plan, resolved_layout

_FILE = Path(__file__).with_name("layers.csv")
# Mode of the table -> (recompute, sequence parallel).
_MODES = {
    "none, TP8 no SP": ("none", False),
    "none, TP8+SP": ("none", True),
    "full recompute, TP8": ("full", False),
    "selective recompute, TP8": ("selective", False),
    "selective + SP": ("selective", True),
    "none (TP baseline)": ("none", False),
    "selective+SP": ("selective", True),
}


@dataclass(frozen=True, slots=True)
class Compared:
    """One published figure beside ours, in the unit of the publication (ms or GiB)."""

    what: str
    published: float
    predicted: float

    @property
    def error(self) -> float:
        """Predicted / published - 1."""
        return self.predicted / self.published - 1

    def __str__(self) -> str:
        return f"{self.what:46}{self.published:9.2f}{self.predicted:9.2f}{self.error:+8.1%}"


def layer_errors() -> Iterator[Compared]:
    """Forward, backward and both of one layer of the 22B model."""
    run, predictor = _run_of("22B"), Predictor()
    for row in _rows("layer_time"):
        layer = _layer(predictor, run, *_MODES[row["mode"]])
        ours = {"fwd": layer.forward_s, "bwd(+recompute)": layer.backward_s}
        seconds = ours.get(row["quantity"], sum(ours.values()))
        yield Compared(f"{row['mode']}, {row['quantity']}", float(row["value"]), 1e3 * seconds)


def memory_errors() -> Iterator[Compared]:
    """Activations of the first stage by the paper's formula (its 4 models, two ways to train them)."""
    predictor = Predictor()
    for row in _rows("memory"):
        if row["mode"] not in _MODES:
            continue
        recompute, sequence = _MODES[row["mode"]]
        run = replace(_run_of(row["model"]), recompute=recompute, sequence_parallel=sequence)
        expressed = express(run)
        graph = predictor.capture(expressed).at(run.micro_batch)
        plan = pinned_plan(run, [block.name for block in graph.blocks])
        cluster = expressed.cluster
        found = predict_plan(
            plan, graph, cluster, cluster.device.memory_bytes, predictor.readings_of(cluster)
        )
        activations = found.stages[0].memory.activations_bytes / 2**30
        yield Compared(f"{row['model']}, {row['mode']}", float(row["value"]), activations)


def _layer(predictor: Predictor, run: Run, recompute: str, sequence_parallel: bool) -> BlockChoice:
    run = replace(run, recompute=recompute, sequence_parallel=sequence_parallel)
    expressed = express(run)
    graph = predictor.capture(expressed).at(run.micro_batch)
    plan = pinned_plan(run, [block.name for block in graph.blocks])
    cluster = expressed.cluster
    layout = resolved_layout(resolve(plan, graph), cluster, predictor.readings_of(cluster))
    # The first block may differ in its input; the second is like all the others.
    index = [block.name for block in graph.blocks].index("blocks.1")
    return layout.stages[0][index]


def _run_of(model: str) -> Run:
    return next(run for run in read_runs() if run.id == f"kort22_t5_{model}_full")


def _rows(kind: str) -> list[dict[str, str]]:
    with _FILE.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["kind"] == kind]
