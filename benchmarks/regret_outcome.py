"""Plans predicted and measured: how well they are ranked, and what the plan chosen loses."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from published.metrics import spearman

from autopar.cost.prediction import Prediction
from autopar.plan.decisions import Plan
from autopar.plan.read import parse_plan
from autopar.plan.write import write_plan


@dataclass(frozen=True)
class Row:
    """A plan: predicted and measured.

    Attributes:
        measured_s: one per turn.
    """

    plan: Plan
    prediction: Prediction
    measured_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """Measured step."""
        return statistics.median(self.measured_s)

    @property
    def key(self) -> tuple[int | None, ...]:
        """Pipeline, data and tensor degree, micro-batch."""
        mesh = self.plan.mesh
        return mesh.pipeline, mesh.data, mesh.tensor, self.plan.micro_batch


@dataclass(frozen=True)
class Outcome:
    """All plans of a model, and the one that the planner chose.

    Attributes:
        speed: how many times as fast as in the profile the machine was meanwhile; None: nothing was measured.
    """

    name: str
    rows: tuple[Row, ...]
    chosen: Row
    refused: tuple[str, ...]
    speed: float | None = None

    @property
    def spearman(self) -> float:
        """Rank correlation of predicted and measured."""
        predicted = [row.prediction.step_time_s for row in self.rows]
        return spearman(predicted, [row.median_s for row in self.rows])

    @property
    def regret(self) -> float:
        """How much slower the plan chosen is than the best."""
        return self.chosen.median_s / min(row.median_s for row in self.rows) - 1

    @property
    def mean_error(self) -> float:
        """Mean of |predicted / measured - 1|."""
        return statistics.mean(abs(row.prediction.step_time_s / row.median_s - 1) for row in self.rows)


def report(outcome: Outcome) -> str:
    """A table of a model's plans, quickest first."""
    lines = [
        f"{outcome.name}: {len(outcome.rows)} plans",
        "pipeline data tensor micro zero  predicted   measured   10%-90%          pred/meas",
    ]
    for row in sorted(outcome.rows, key=lambda row: row.median_s):
        pipeline, data, tensor, micro = row.key
        low, high = min(row.measured_s), max(row.measured_s)
        if len(row.measured_s) > 2:
            deciles = statistics.quantiles(row.measured_s, n=10, method="inclusive")
            low, high = deciles[0], deciles[-1]
        zero = row.plan.zero if isinstance(row.plan.zero, int) else max(row.plan.zero or (0,))
        predicted_s = row.prediction.step_time_s
        lines.append(
            f"{pipeline:8} {data:4} {tensor:6} {micro:5} {zero:4} {predicted_s * 1e3:7.1f} ms"
            f" {row.median_s * 1e3:7.1f} ms {low * 1e3:7.1f}-{high * 1e3:<7.1f}"
            f" {predicted_s / row.median_s:8.2f}{'  <- chosen' if row is outcome.chosen else ''}"
        )
    lines += [f"not feasible: {text}" for text in outcome.refused]
    if outcome.speed is not None:
        lines.append(f"meanwhile the machine multiplied {outcome.speed:.2f} times as fast as in the profile")
    lines.append(
        f"Spearman {outcome.spearman:.3f} (wanted: at least 0.9); the plan chosen is"
        f" {outcome.regret:.1%} slower than the best measured (wanted: at most 5%);"
        f" mean error {outcome.mean_error:.1%}"
    )
    return "\n".join(lines)


def document(
    outcomes: Sequence[Outcome], device: str, load: float, others: Mapping[str, Any]
) -> dict[str, Any]:
    """What ``--json`` writes.

    Args:
        others: what is to be kept of models that are not among the outcomes, as this writes it.
    """
    models = {**others, **{outcome.name: _model_document(outcome) for outcome in outcomes}}
    return {"schema": 1, "device": device, "load_before": load, "models": models}


def _model_document(outcome: Outcome) -> dict[str, Any]:
    return {
        "spearman": outcome.spearman,
        "regret": outcome.regret,
        "mean_error": outcome.mean_error,
        "speed": outcome.speed,
        "chosen": outcome.rows.index(outcome.chosen),
        "refused": outcome.refused,
        "plans": [
            {
                "key": row.key,
                "plan": write_plan(row.plan),
                "predicted_s": row.prediction.step_time_s,
                "median_s": row.median_s,
                "measured_s": row.measured_s,
            }
            for row in outcome.rows
        ],
    }


@dataclass(frozen=True)
class Earlier:
    """What an earlier run measured of a model.

    Attributes:
        measured_s: steps of each plan, one per turn.
        chosen: index of the plan that the planner chose.
        refused: why other meshes and micro-batches have no plan.
    """

    plans: tuple[Plan, ...]
    measured_s: tuple[tuple[float, ...], ...]
    chosen: int
    refused: tuple[str, ...]


def read_earlier(path: Path) -> dict[str, Earlier]:
    """What ``document`` says, by model."""
    models = json.loads(path.read_text())["models"]
    return {
        name: Earlier(
            tuple(parse_plan(row["plan"], f"{path}: {name}") for row in found["plans"]),
            tuple(tuple(row["measured_s"]) for row in found["plans"]),
            found["chosen"],
            tuple(found["refused"]),
        )
        for name, found in models.items()
    }
