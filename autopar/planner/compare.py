"""Two plans of one model beside each other: each decision of the second tried alone in the first.

What cannot be tried alone (it asks for others), and what decisions do only together, is one remainder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autopar.capture.capture import Capture
from autopar.capture.target import ModelSource
from autopar.cost.blocks import Readings
from autopar.errors import CaptureError, PlanError
from autopar.hardware.cluster import Cluster
from autopar.plan.decisions import Plan, Precision
from autopar.plan.merge import override
from autopar.planner.check import capture_for
from autopar.planner.differences import Difference, differences, num_stages
from autopar.planner.explain import Costing, cost_plan


@dataclass(frozen=True, slots=True)
class Effect:
    """What one decision of the second plan does to the first.

    Attributes:
        extra_s: of the step; None where the decision cannot be tried alone, or is not costed.
        extra_bytes: of the fullest device.
        remark: why not.
    """

    key: str
    first: str
    second: str
    extra_s: float | None
    extra_bytes: int | None
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two plans.

    Attributes:
        effects: of every decision in which they differ, by itself.
        rest_s: what of the difference of their steps these leave open.
        rest_bytes: likewise, of memory.
    """

    first: Costing
    second: Costing
    effects: tuple[Effect, ...]
    rest_s: float
    rest_bytes: int


@dataclass(frozen=True, slots=True)
class Side:
    """A plan with the devices that it is costed on.

    Attributes:
        memory_limit_bytes: of a device; None: all that it has.
    """

    plan: Plan
    cluster: Cluster
    memory_limit_bytes: int | None


def compare_plans(
    first: Side, second: Side, source: ModelSource, captured: Capture | None = None
) -> Comparison:
    """Costs both plans, and the first with each decision of the second.

    Args:
        captured: the model, if it has been captured in the first plan's precision before.

    Raises:
        PlanError: a plan is incomplete, or wrong for the model.
        CaptureError: the model cannot be captured.
    """
    known = {} if captured is None else {first.plan.precision: captured}
    trial = _Trial(first, source, known)
    mine, theirs = trial.cost(first.plan), _Trial(second, source, trial.captured).cost(second.plan)
    effects = [*_of_devices(trial, mine, first, second)]
    for difference in differences(first.plan, second.plan, mine.resolved.graph):
        effects.append(_effect(difference, trial, mine, second.plan))
    explained_s = sum(effect.extra_s or 0.0 for effect in effects)
    explained_bytes = sum(effect.extra_bytes or 0 for effect in effects)
    return Comparison(
        mine,
        theirs,
        tuple(effects),
        theirs.prediction.step_time_s - mine.prediction.step_time_s - explained_s,
        theirs.prediction.peak_memory_bytes - mine.prediction.peak_memory_bytes - explained_bytes,
    )


class _Trial:
    """Costs variants of a plan on its devices."""

    def __init__(self, side: Side, source: ModelSource, captured: dict[Precision | None, Capture]) -> None:
        self._side, self.source = side, source
        self._readings = Readings(side.cluster)
        self.captured = captured

    def cost(self, plan: Plan) -> Costing:
        if plan.precision not in self.captured:
            self.captured[plan.precision] = capture_for(plan, self.source)
        side = self._side
        return cost_plan(
            plan,
            self.source,
            side.cluster,
            side.memory_limit_bytes,
            self.captured[plan.precision],
            self._readings,
        )


def _of_devices(trial: _Trial, mine: Costing, first: Side, second: Side) -> Sequence[Effect]:
    """The effect of other devices, if there are any."""
    one, other_name = (f"{s.cluster.num_devices} x {s.cluster.device.name}" for s in (first, second))
    if one == other_name and first.plan.cluster == second.plan.cluster:
        return ()
    moved = replace(first.plan, cluster=second.plan.cluster)
    try:
        other = _Trial(replace(second, plan=moved), trial.source, trial.captured).cost(moved)
    except PlanError as problem:
        return (Effect("cluster", one, other_name, None, None, str(problem)),)
    return (Effect("cluster", one, other_name, *_extra(other, mine)),)


def _extra(other: Costing, mine: Costing) -> tuple[float, int]:
    return (
        other.prediction.step_time_s - mine.prediction.step_time_s,
        other.prediction.peak_memory_bytes - mine.prediction.peak_memory_bytes,
    )


def _effect(difference: Difference, trial: _Trial, mine: Costing, second: Plan) -> Effect:
    said = difference.key, difference.first, difference.second
    if difference.key == "compile":
        return Effect(*said, None, None, "it is run, but not costed: predictions are of eager PyTorch")
    try:
        other = trial.cost(with_decision(mine.resolved.plan, second, difference))
    except (PlanError, CaptureError) as problem:
        return Effect(*said, None, None, str(problem))
    return Effect(*said, *_extra(other, mine))


def with_decision(first: Plan, second: Plan, difference: Difference) -> Plan:
    """The first plan with one decision of the second, and what follows from that decision alone.

    Raises:
        PlanError: the decision contradicts the rest of the first plan.
    """
    if difference.of_second == Plan():
        return _without(first, second, difference)
    change = difference.of_second
    after = replace(first, mesh=second.mesh) if difference.key == "mesh" else first
    if difference.key == "pipeline.schedule":
        after = replace(first, virtual=second.virtual)
    if num_stages(after) != num_stages(first):
        change = replace(change, stages=second.stages)
    changed = override(replace(first, path=""), change)
    if difference.key == "mesh" and first.mesh.tensor != second.mesh.tensor:
        changed = replace(
            changed, tensor=second.tensor, activations=second.activations, operators=second.operators
        )
    return changed


def _without(first: Plan, second: Plan, difference: Difference) -> Plan:
    """The first plan without a decision that the second does not take.

    Raises:
        PlanError: the second has no choice there.
    """
    if difference.key == "pipeline.schedule":
        raise PlanError("the second plan has one stage, which has one schedule: it follows from the mesh")
    if difference.key == "shard_group":
        if second.zero in (0, None):
            raise PlanError("the second plan divides no state, so that its groups do nothing")
        return replace(first, shard_group=None)
    gone = {line.pattern for line in difference.of_first.operators}
    return replace(first, operators=tuple(x for x in first.operators if x.pattern not in gone))
