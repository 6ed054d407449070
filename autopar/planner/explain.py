"""Why a plan takes what it takes: where its step goes, what it loses against the free optimum, and to which
of its lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autopar.capture.capture import Capture
from autopar.capture.model_graph import ModelGraph
from autopar.capture.target import ModelSource
from autopar.cost.blocks import Readings, sharding_signature
from autopar.cost.breakdown import Breakdown, break_down
from autopar.cost.layout import Layout
from autopar.cost.prediction import Prediction
from autopar.cost.step import predict
from autopar.errors import CaptureError, InfeasibleError, PlanError
from autopar.hardware.cluster import Cluster
from autopar.lower.block import lower_block
from autopar.lower.resolve import ResolvedPlan, resolve
from autopar.plan.decisions import Plan
from autopar.plan.hand_made import decisions, hand_made
from autopar.plan.hand_made import without as without_line
from autopar.planner.check import capture_for, resolved_layout
from autopar.planner.differences import UNSAID, Difference, differences
from autopar.planner.freed_decision import without
from autopar.planner.plan_lines import generalised_key
from autopar.planner.planner import Progress, Watch
from autopar.planner.replan import Replanner
from autopar.planner.request import PlanResult

MOST_LINES = 12
"""Lines that are planned for one by one; what is beyond is named."""

ASKED_FOR = ("batch.global", "precision", "optimizer", "compile")
"""What the free optimum shares with the plan."""

_WIDTH = 40
_UNFINISHED = "quicker than the free plan, whose search stopped short"
_NOTHING_FITS = "no plan fits on these devices: `autopar plan` says what would"


@dataclass(frozen=True, slots=True)
class Fallback:
    """Operators that run whole on every rank of the tensor axis for lack of a sharding rule.

    Attributes:
        operator: key, with ``*`` for numbers that do not matter.
        num_calls: in the whole model.
    """

    operator: str
    num_calls: int


@dataclass(frozen=True, slots=True)
class LineCost:
    """A hand-made line, or one that differs from the free optimum.

    Attributes:
        here: what the plan says.
        free: what the free optimum says.
        step_time_s: of the best plan in which this is fixed and nothing else; None where none fits.
        extra_s: by how much that is longer than the free optimum.
        remark: why there is no number, or what is odd about it.
    """

    key: str
    here: str
    free: str
    step_time_s: float | None
    extra_s: float | None
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Freed:
    """What a plan would gain if one decision were left to the planner, and all others stayed.

    Attributes:
        step_time_s: of the best such plan.
        gain_s: by how much it is shorter than the plan's.
        would_say: what the planner would decide.
    """

    key: str
    step_time_s: float
    gain_s: float
    would_say: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class Costing:
    """A plan bound to its model and its cluster, with everything that follows.

    Attributes:
        memory_limit_bytes: of a device.
    """

    resolved: ResolvedPlan
    cluster: Cluster
    memory_limit_bytes: int
    layout: Layout
    prediction: Prediction
    breakdown: Breakdown


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is known about a plan.

    Attributes:
        fallbacks: operators that run replicated for lack of a rule.
        free: the free optimum with its runners-up; None where nothing was searched.
        lines: what was fixed by hand, and what each costs against it.
        freed: the decisions asked for.
        remark: why nothing was found, where a search found nothing.
    """

    costing: Costing
    fallbacks: tuple[Fallback, ...]
    free: PlanResult | None = None
    lines: tuple[LineCost, ...] = ()
    freed: tuple[Freed, ...] = ()
    remark: str = ""


def cost_plan(
    plan: Plan,
    source: ModelSource,
    cluster: Cluster,
    memory_limit_bytes: int | None = None,
    captured: Capture | None = None,
    readings: Readings | None = None,
) -> Costing:
    """Binds a complete plan to its model, costs it and breaks its step down.

    Args:
        memory_limit_bytes: of a device; None: all that it has.
        captured: the model, if it has been captured before.
        readings: of the same cluster, to read from and add to.

    Raises:
        PlanError: the plan is incomplete, or wrong for the model or the cluster.
        CaptureError: the model cannot be captured.
    """
    captured = capture_for(plan, source, captured)
    assert plan.micro_batch is not None
    resolved = resolve(plan, captured.at(plan.micro_batch))
    layout = resolved_layout(resolved, cluster, readings or Readings(cluster))
    limit_bytes = memory_limit_bytes or cluster.device.memory_bytes
    prediction = predict(layout, cluster, limit_bytes)
    return Costing(resolved, cluster, limit_bytes, layout, prediction, break_down(layout, cluster))


def explain_plan(
    costing: Costing,
    source: ModelSource,
    captured: Capture,
    *,
    top: int = 5,
    free_keys: Sequence[str] = (),
    time_limit_s: float | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Explanation:
    """Compares a plan with the free optimum: that of the same model, devices, batch, precision and optimiser.

    Args:
        top: plans to show beside each other, the free optimum included.
        free_keys: decisions of which it is asked what leaving each to the planner would gain.
        time_limit_s: of each search.
        progress, watch: told what is being searched, and how far that is.

    Raises:
        UsageError: one of ``free_keys`` is none that a plan has.
    """
    plan = costing.resolved.plan
    tell = progress or (lambda text: None)
    planner = Replanner(
        plan, source, costing.cluster, captured, costing.memory_limit_bytes, time_limit_s, progress, watch
    )
    fixed = [(key, without(plan, key)) for key in free_keys]
    tell("the free optimum")
    try:
        free = planner.plan(Plan(), top=top)
    except InfeasibleError:
        return Explanation(costing, fallbacks(costing.resolved), remark=_NOTHING_FITS)
    lines = []
    for number, difference in enumerate(_lines_to_cost(plan, free.plan, costing.resolved.graph)):
        tell(f"the best plan with {difference.key} = {difference.first}")
        lines.append(_line_cost(difference, planner, free, number))
    freed = []
    for key, rest in fixed:
        tell(f"the best plan with {key} free and all else as it is")
        freed.append(_freed(key, rest, plan, planner, costing))
    return Explanation(costing, fallbacks(costing.resolved), free, tuple(lines), tuple(freed))


def _lines_to_cost(plan: Plan, free: Plan, graph: ModelGraph) -> tuple[Difference, ...]:
    """The lines that were made by hand; of a file that does not tell them, all that differ."""
    if not plan.chosen:
        return differences(plan, free, graph)
    fixed, freely = hand_made(plan), decisions(free)
    found = []
    for key, value in decisions(fixed).items():
        if key not in ASKED_FOR:
            one = fixed
            for other in decisions(fixed):
                one = without_line(one, other) if other != key else one
            alone = replace(one, model=None, cluster=None, path="", places={}, sources={}, chosen=())
            found.append(Difference(key, _text(value), _text(freely.get(key)), alone, Plan()))
    return tuple(found)


def _text(value: object) -> str:
    """The value of a line in a few characters."""
    if value is None:
        return UNSAID
    if isinstance(value, list):
        inside = [", ".join(map(str, one)) if isinstance(one, list) else str(one) for one in value]
        value = " | ".join(inside)
    text = str(value)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def _line_cost(difference: Difference, planner: Replanner, free: PlanResult, number: int) -> LineCost:
    said = difference.key, difference.first, difference.second
    if difference.of_first == Plan():
        return LineCost(*said, None, None, "follows from the other decisions")
    if number >= MOST_LINES:
        return LineCost(*said, None, None, f"only the first {MOST_LINES} lines are planned for")
    try:
        step_s = planner.plan(difference.of_first).prediction.step_time_s
    except (InfeasibleError, PlanError, CaptureError) as problem:
        return LineCost(*said, None, None, str(problem))
    extra_s = step_s - free.prediction.step_time_s
    return LineCost(*said, step_s, extra_s, _UNFINISHED if extra_s < 0 and free.status != "optimal" else "")


def _freed(key: str, rest: Plan, plan: Plan, planner: Replanner, costing: Costing) -> Freed:
    found = planner.plan(rest)
    step_s = found.prediction.step_time_s
    changed = differences(plan, found.plan, costing.resolved.graph)
    return Freed(key, step_s, costing.prediction.step_time_s - step_s, changed)


def fallbacks(resolved: ResolvedPlan) -> tuple[Fallback, ...]:
    """Operators that run replicated on the tensor axis for lack of a rule."""
    if resolved.plan.mesh.tensor == 1:
        return ()
    known: dict[object, tuple[str, ...]] = {}
    counts: dict[str, int] = {}
    for decision in resolved.blocks:
        key = decision.block.class_key, sharding_signature(decision.block, decision.sharding)
        if key not in known:
            known[key] = lower_block(decision.block, decision.sharding).fallbacks
        for operator in known[key]:
            counts[generalised_key(operator)] = counts.get(generalised_key(operator), 0) + 1
    return tuple(Fallback(operator, count) for operator, count in sorted(counts.items()))
