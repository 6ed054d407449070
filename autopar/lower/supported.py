"""Combinations that no run could carry out rightly, or that are not built: each refused with its reason."""

from __future__ import annotations

from autopar.capture.model_graph import ModelGraph
from autopar.plan.decisions import Plan, ScheduleName

_BUILT_SCHEDULES = (ScheduleName.GPIPE, ScheduleName.ONE_F_ONE_B)


def check_supported(plan: Plan, graph: ModelGraph) -> None:
    """Refuses what the runtime cannot do.

    Raises:
        PlanError: names the decision, the reason and what to write instead.
    """
    levels = plan.zero if isinstance(plan.zero, tuple) else (plan.zero or 0,)
    for level in levels:
        if level not in (0, 1, 2, 3):
            raise plan.error("zero", f"ZeRO level {level} does not exist; write 0, 1, 2 or 3")
    if plan.schedule in (ScheduleName.ZERO_BUBBLE, ScheduleName.ZBV):
        _check_zero_bubble(plan, graph, max(levels))
    if plan.schedule is not None and plan.schedule not in _BUILT_SCHEDULES:
        raise plan.error(
            "pipeline.schedule",
            f"schedule {plan.schedule} cannot be run yet; write {' or '.join(_BUILT_SCHEDULES)}",
        )
    if plan.offload not in (None, "none"):
        raise plan.error(
            "offload", f"offloading of {plan.offload} to host memory cannot be run yet; write offload: none"
        )


def _check_zero_bubble(plan: Plan, graph: ModelGraph, zero: int) -> None:
    """Zero-bubble schedules split the backward pass; what relies on a whole one goes wrong."""
    assert plan.schedule is not None
    if zero == 3:
        raise plan.error(
            "zero",
            f"schedule {plan.schedule} with ZeRO 3 loses gradients: weights are freed between the "
            "two halves of its backward pass; write zero: 0 or schedule: 1f1b",
        )
    if plan.schedule is ScheduleName.ZBV and any(spec.aliases for spec in graph.parameters.values()):
        raise plan.error(
            "pipeline.schedule",
            "schedule zbv does not add up the gradients of tied weights; write schedule: 1f1b",
        )
