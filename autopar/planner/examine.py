"""A plan looked at as one does who edits it: all of its errors, what it costs, what is odd about it, and what
a change does to it."""

from __future__ import annotations

from dataclasses import dataclass

from autopar.capture.capture import Capture
from autopar.capture.target import ModelSource
from autopar.errors import AutoparError
from autopar.hardware.cluster import Cluster
from autopar.plan.decisions import Plan
from autopar.planner.check import CheckResult, capture_for, check_plan
from autopar.planner.oddities import Oddity, find_oddities
from autopar.planner.problems import check_against_model


@dataclass(frozen=True, slots=True)
class Examined:
    """What there is to say about a plan.

    Attributes:
        oddities: legal, but perhaps not meant.
        before: of the plan without the change that is asked about; None where there is no change, or where
            that plan could not be costed.
        why_not_before: in the latter case.
    """

    result: CheckResult
    oddities: tuple[Oddity, ...] = ()
    before: CheckResult | None = None
    why_not_before: str = ""


def examine(
    plan: Plan,
    source: ModelSource,
    cluster: Cluster,
    *,
    memory_limit_bytes: int | None = None,
    unchanged: Plan | None = None,
) -> Examined:
    """Costs a complete plan on a cluster.

    Args:
        memory_limit_bytes: of a device; None: all that it has.
        unchanged: the plan without the change that is asked about, if there is one.

    Raises:
        PlanError: tells of everything that is wrong with the plan.
        CaptureError: the model cannot be captured.
    """
    captured = capture_for(plan, source)
    result = _checked(plan, captured, source, cluster, memory_limit_bytes)
    oddities = find_oddities(plan, captured, cluster, result.prediction)
    if unchanged is None:
        return Examined(result, oddities)
    try:
        before = _checked(
            unchanged, capture_for(unchanged, source, captured), source, cluster, memory_limit_bytes
        )
    except AutoparError as problem:
        return Examined(result, oddities, None, str(problem))
    return Examined(result, oddities, before)


def _checked(
    plan: Plan, captured: Capture, source: ModelSource, cluster: Cluster, memory_limit_bytes: int | None
) -> CheckResult:
    assert plan.micro_batch is not None
    check_against_model(plan, captured.at(plan.micro_batch))
    return check_plan(plan, source, cluster, memory_limit_bytes=memory_limit_bytes, captured=captured)
