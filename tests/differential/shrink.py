"""Making a failing case smaller for as long as it keeps failing in the same way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from autopar.errors import PlanError
from autopar.plan.decisions import PatternLine, Plan, ScheduleName
from autopar.plan.read import parse_plan
from autopar.plan.write import write_plan
from tests.differential.cases import Outcome, Trial, run_trials
from tests.differential.random_plans import even_stages


def shrink(outcome: Outcome, folder: Path, most_runs: int = 80) -> Outcome:
    """The smallest failing case found by leaving out one thing after another."""
    best, runs, kind = outcome, 0, _kind(outcome)
    progress = True
    while progress and runs < most_runs:
        progress = False
        for trial in _smaller(best):
            runs += 1
            (found,) = run_trials([trial], folder)
            if found.problem and _kind(found) == kind:
                best, progress = replace(found, plan=found.plan or trial.plan), True
                break
            if runs >= most_runs:
                break
    return best


def _kind(outcome: Outcome) -> str:
    lines = [line for line in outcome.problem.splitlines() if line and not line.startswith((" ", "under"))]
    is_raised = outcome.problem.startswith("Traceback")
    return next((x.split(":")[0] for x in lines[1:] if "Error" in x), "raised") if is_raised else lines[0][:7]


def _smaller(outcome: Outcome) -> Iterator[Trial]:
    trial = outcome.trial
    if outcome.plan:
        for plan in _smaller_plans(parse_plan(outcome.plan)):
            text = write_plan(plan)
            with suppress(PlanError):  # what is left may no longer go together
                parse_plan(text)
                yield replace(trial, plan=text)
    for index in reversed(range(len(trial.model.steps))):
        model = trial.model.without(index)
        if model is not None:
            yield Trial(trial.seed, model, outcome.plan)


def _smaller_plans(plan: Plan) -> Iterator[Plan]:
    everything = (PatternLine("*", "replicate"),)
    mesh, micro = plan.mesh, plan.micro_batch or 1
    names = [name for stage in plan.stages or () for name in stage]
    if plan.num_micro_batches > 1:
        yield replace(plan, global_batch=micro * (mesh.data or 1))
    if plan.offload != "none":
        yield replace(plan, offload="none")
    if plan.zero != 0:
        yield replace(plan, zero=0)
    if mesh.order is not None:
        yield replace(plan, mesh=replace(mesh, order=None))
    if plan.operators:
        yield replace(plan, operators=())
    if plan.recompute != (PatternLine("*", "none"),):
        yield replace(plan, recompute=(PatternLine("*", "none"),))
    if plan.activations != everything:
        yield replace(plan, activations=everything)
    if plan.schedule is not ScheduleName.GPIPE:
        yield replace(
            plan,
            schedule=ScheduleName.GPIPE,
            virtual=1,
            stages=even_stages(names, mesh.pipeline or 1),
            zero=0,
        )
    if (mesh.pipeline or 1) > 1:
        alone = replace(mesh, pipeline=1)
        yield replace(
            plan, mesh=alone, schedule=ScheduleName.GPIPE, virtual=1, stages=(tuple(names),), zero=0
        )
    if (mesh.data or 1) > 1:
        yield replace(
            plan, mesh=replace(mesh, data=1), global_batch=micro * plan.num_micro_batches, shard_group=None
        )
    if (mesh.tensor or 1) > 2:
        yield replace(plan, mesh=replace(mesh, tensor=2))
    for section in ("operators", "tensor"):
        lines = getattr(plan, section)
        for begin, end in pairwise(_bounds(len(lines))):
            kept = (*lines[:begin], *lines[end:])
            if end - begin < len(lines) or section == "operators":
                kept = (*kept, *everything) if section == "tensor" and everything[0] not in kept else kept
                if kept != lines:
                    yield replace(plan, **{section: kept})


def _bounds(num: int) -> list[int]:
    step = max(1, num // 4)
    return [*range(0, num, step), num]
