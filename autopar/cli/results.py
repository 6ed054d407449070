"""What ``plan`` and ``check`` print: the plan as YAML, a summary for people, JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.text import Text

from autopar.cli.terminal import rendered, width_of
from autopar.cost.prediction import Prediction
from autopar.cost.step_timeline import StepTimeline
from autopar.plan.decisions import MESH_AXES, Mesh, Plan
from autopar.plan.document import to_document
from autopar.plan.write import write_plan
from autopar.report.lanes import lanes
from autopar.report.predicted import predicted_section, prediction_document
from autopar.report.text import (
    Baseline,
    NotChosen,
    alternatives_table,
    baselines_table,
    headline,
    memory_table,
    stage_table,
)

if TYPE_CHECKING:
    from autopar.planner.request import BatchTried, PlanResult


@dataclass(frozen=True, slots=True)
class Costed:
    """A complete plan with its prediction.

    Attributes:
        status: ``optimal``, ``feasible`` or ``infeasible``.
        gap: how far the plan may be above the bound, as a fraction; None where nothing was solved.
        bound_s: no plan is faster under the cost model; None where nothing was solved.
        search: what the search took; None where nothing was searched.
        batches: the global batches tried under ``--batch auto``.
        timeline: of the step, where it is to be shown.
    """

    plan: Plan
    prediction: Prediction
    status: str
    gap: float | None = None
    bound_s: float | None = None
    alternatives: tuple[NotChosen, ...] = ()
    search: Mapping[str, Any] | None = None
    baselines: tuple[Baseline, ...] = ()
    batches: tuple[BatchTried, ...] = ()
    timeline: StepTimeline | None = None

    @staticmethod
    def of_result(result: PlanResult) -> Costed:
        """Of what the planner gives."""
        return Costed(
            plan=result.plan,
            prediction=result.prediction,
            status=str(result.status),
            gap=result.gap,
            bound_s=result.bound_s,
            alternatives=result.alternatives,
            search=asdict(result.search) | {"bound_s": result.bound_s, "gap": result.gap},
            baselines=result.baselines,
            batches=result.batches,
            timeline=result.timeline,
        )


def to_yaml(costed: Costed) -> str:
    """The plan file."""
    return write_plan(
        costed.plan, predicted_section(costed.prediction, costed.status, costed.gap, costed.bound_s)
    )


def to_summary(costed: Costed, *, to_stderr: bool = False) -> str:
    """Tables for people."""
    stream = sys.__stderr__ if to_stderr else sys.__stdout__
    parts: list[Any] = [
        *headline(costed.plan, costed.prediction, costed.status, costed.gap, costed.bound_s),
        Text(),
        *([*lanes(costed.timeline, width_of(stream)), Text()] if costed.timeline else []),
        stage_table(costed.plan, costed.prediction),
        Text(),
        Text("memory of one device"),
        memory_table(costed.prediction.stages),
        Text(),
    ]
    if costed.alternatives:
        parts += [Text("not chosen"), alternatives_table(costed.alternatives), Text()]
    if costed.baselines:
        parts += [Text("beside plans written by hand"), baselines_table(costed.baselines), Text()]
    return rendered(parts, stream)


def plan_document(costed: Costed, plan_file: str | None) -> dict[str, Any]:
    """The document of ``--json``, schema 1."""
    document: dict[str, Any] = {
        "schema": 1,
        "status": costed.status,
        "plan_file": plan_file,
        "plan": to_document(costed.plan),
        "predicted": prediction_document(costed.prediction),
    }
    if costed.search is not None:
        document["search"] = dict(costed.search)
        document["baselines"] = [_baseline(other) for other in costed.baselines]
    if costed.batches:
        document["batches"] = [asdict(tried) for tried in costed.batches]
    document["alternatives"] = [_alternative(other) for other in costed.alternatives]
    return document


def _alternative(other: NotChosen) -> dict[str, Any]:
    zero = other.zero
    return {
        "mesh": mesh_document(other.mesh),
        "micro": other.micro_batch,
        "zero": list(zero) if isinstance(zero, tuple) else zero,
        "schedule": str(other.schedule),
        "virtual": other.virtual,
        "offload": other.offload,
        "step_time_s": other.step_time_s,
        "peak_memory_bytes": other.peak_memory_bytes,
        "why_not": other.why_not,
    }


def _baseline(other: Baseline) -> dict[str, Any]:
    return {
        "name": other.name,
        "mesh": None if other.mesh is None else mesh_document(other.mesh),
        "micro": other.micro_batch,
        "zero": other.zero,
        "recompute": other.recompute,
        "step_time_s": other.step_time_s,
        "peak_memory_bytes": other.peak_memory_bytes,
        "remark": other.remark,
    }


def mesh_document(mesh: Mesh) -> dict[str, int | None]:
    """The degrees by axis."""
    return {axis: getattr(mesh, axis) for axis in MESH_AXES}
