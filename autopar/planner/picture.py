"""The numbers of a report: a costed plan, what a search met beside it, and what would change its time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from autopar.cost.memory_over_time import memory_over_time
from autopar.cost.step_timeline import step_timeline
from autopar.plan.decisions import Plan
from autopar.planner.explain import Costing
from autopar.planner.request import PlanResult
from autopar.planner.sensitivity import sensitivities
from autopar.report.picture import BlockCell, CandidatePoint, Picture
from autopar.schedule.actions import stage_rank
from autopar.solve.candidate import Candidate


def picture_of(
    costing: Costing,
    free: PlanResult | None,
    title: str,
    summary: Sequence[str],
    yaml: str,
    planned_s: Mapping[float, float] | None = None,
) -> Picture:
    """Everything that a report of a plan shows.

    Args:
        free: the free optimum with what its search met; None where nothing was searched.
        yaml: the plan file as it is shown.
        planned_s: of the best plans for parts of the memory (``planned_with_less``).
    """
    layout, cluster = costing.layout, costing.cluster
    timeline = step_timeline(layout, cluster)
    return Picture(
        title=title,
        summary=summary,
        yaml=yaml,
        plan=costing.resolved.plan,
        prediction=costing.prediction,
        breakdown=costing.breakdown,
        timeline=timeline,
        memory=memory_over_time(layout, cluster, timeline),
        blocks=tuple(_cells(costing)),
        candidates=tuple(_points(costing, free)),
        sensitivities=sensitivities(costing, free.considered if free else (), planned_s),
    )


def _cells(costing: Costing) -> Iterator[BlockCell]:
    layout = costing.layout
    choices = [choice for stage in layout.stages for choice in stage]
    for decision, choice in zip(costing.resolved.blocks, choices, strict=True):
        placed = dict.fromkeys(share.placement for share in choice.parameters)
        sharded = [placement for placement in placed if placement != "replicate"]
        yield BlockCell(
            decision.block.name,
            decision.stage,
            stage_rank(layout.schedule, decision.stage, layout.pipeline, layout.virtual),
            decision.input_word,
            decision.output_word,
            ", ".join(sharded),
            str(decision.recompute),
            choice.forward_s,
            choice.backward_s,
            choice.saved_bytes,
        )


def _points(costing: Costing, free: PlanResult | None) -> Iterator[CandidatePoint]:
    prediction, plan = costing.prediction, costing.resolved.plan
    if free is not None:
        for one in free.considered:
            mark = "infeasible" if not one.fits else "other" if one.is_solved else "looked at"
            yield CandidatePoint(_label(one.candidate), one.step_s, one.peak_bytes, mark)
        best = free.prediction
        yield CandidatePoint(_plan_label(free.plan), best.step_time_s, best.peak_memory_bytes, "best")
    yield CandidatePoint(_plan_label(plan), prediction.step_time_s, prediction.peak_memory_bytes, "plan")


def _label(candidate: Candidate) -> str:
    schedule = f"{candidate.schedule} x {candidate.virtual}" if candidate.virtual > 1 else candidate.schedule
    offload = f", offload {' and '.join(candidate.offload)}" if candidate.offload else ""
    group = f" in groups of {candidate.shard_group}" if candidate.shard_group else ""
    p, d, t = candidate.mesh
    return (
        f"{p} x {d} x {t}, micro-batch {candidate.micro_batch}, ZeRO {max(candidate.zero)}{group}, "
        f"{schedule}{offload}"
    )


def _plan_label(plan: Plan) -> str:
    mesh, zero = plan.mesh, plan.zero
    level = max(zero) if isinstance(zero, tuple) else zero
    return (
        f"{mesh.pipeline} x {mesh.data} x {mesh.tensor}, micro-batch {plan.micro_batch}, ZeRO {level}, "
        f"{plan.schedule}"
    )
