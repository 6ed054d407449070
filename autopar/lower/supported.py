"""Combinations that no run could carry out rightly, or that are not built: each refused with its reason."""

from __future__ import annotations

from autopar.capture.model_graph import InputKind, ModelGraph
from autopar.errors import UsageError
from autopar.plan.agreement import check_agreement
from autopar.plan.decisions import Plan, ScheduleName
from autopar.schedule.actions import check_schedule, stage_rank


def check_supported(plan: Plan, graph: ModelGraph) -> None:
    """Refuses what the runtime cannot do.

    Raises:
        PlanError: names the decision, the reason and what to write instead.
    """
    levels = plan.zero if isinstance(plan.zero, tuple) else (plan.zero or 0,)
    for level in levels:
        if level not in (0, 1, 2, 3):
            raise plan.error("zero", f"ZeRO level {level} does not exist; write 0, 1, 2 or 3")
    if plan.schedule is not None:
        try:
            check_schedule(plan.schedule, plan.virtual or 1)
        except UsageError as problem:
            raise plan.error("pipeline.schedule", str(problem)) from None
        _check_ties(plan, graph, plan.schedule)
    check_agreement(plan)  # plans that were not read from a file have not been checked for it


def _check_ties(plan: Plan, graph: ModelGraph, schedule: ScheduleName) -> None:
    """Refuses a parameter that one rank would hold both divided among its data ranks and whole."""
    if not isinstance(plan.zero, tuple) or (plan.mesh.data or 1) == 1 or (plan.virtual or 1) == 1:
        return
    stage_of = {name: number for number, names in enumerate(plan.stages or ()) for name in names}
    seen: dict[tuple[str, int], int] = {}
    for block in graph.blocks:
        stage = stage_of[block.name]
        rank = stage_rank(schedule, stage, plan.mesh.pipeline or 1, plan.virtual or 1)
        for entry in block.inputs:
            if entry.kind is not InputKind.PARAMETER:
                continue
            first = seen.setdefault((entry.source, rank), stage)
            if (plan.zero[first] > 0) != (plan.zero[stage] > 0):
                raise plan.error(
                    "zero",
                    f"stages {first} and {stage} are on one rank and share {entry.source}, but "
                    f"have ZeRO levels {plan.zero[first]} and {plan.zero[stage]}: one divides the "
                    "parameter among the data ranks, the other does not; give both stages one level",
                )
