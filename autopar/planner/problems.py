"""Every error of a complete plan against its model, not the first only.

Plan and model are bound as they are for a run; what that refuses is noted, the line is put right in a copy,
and it is tried again, until nothing is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from autopar.capture.model_graph import ModelGraph
from autopar.errors import PlanError
from autopar.lower.resolve import resolve
from autopar.plan.decisions import PatternLine, Plan, Recompute, ScheduleName
from autopar.planner.plan_lines import stage_names

_MOST = 100
_NAMED = re.compile(r"stage (?P<stage>\d+) names '(?P<name>[^']+)'")
_NEUTRAL = {
    "tensor": "replicate",
    "activations": "replicate",
    "recompute": str(Recompute.NONE),
    "operators": "",
}


def check_against_model(plan: Plan, graph: ModelGraph) -> None:
    """Raises a ``PlanError`` that tells of everything that is wrong with a plan for its model."""
    found: list[PlanError] = []
    trial: Plan | None = plan
    known = {block.name for block in graph.blocks}
    is_cut = False  # whether names were taken out of the stages, so that blocks are missing
    while trial is not None and len(found) < _MOST:
        try:
            resolve(trial, graph)
            break
        except PlanError as problem:
            if is_cut and "no stage holds" in problem.message:
                trial = _put_right(trial, "pipeline.stages", graph)
                continue
            # A line that is put right wrongly is refused again, as before: once it is told.
            found += [each for each in problem.problems if str(each) not in map(str, found)]
            shorter = _without_names(trial, problem, known)
            is_cut = is_cut or shorter is not None
            trial = shorter or _put_right(trial, problem.key, graph)
    if found:
        raise PlanError.of(found)


def _without_names(plan: Plan, problem: PlanError, known: Collection[str]) -> Plan | None:
    """The plan without the blocks that a stage names wrongly, if that is what is wrong."""
    named = _NAMED.match(problem.message)
    if named is None or plan.stages is None or not problem.key.startswith("pipeline.stages."):
        return None
    number, name = int(named["stage"]), named["name"]
    stages = [list(stage) for stage in plan.stages]
    if name in stages[number] and name in known:
        stages[number].remove(name)
    else:
        stages[number] = [each for each in stages[number] if each in known]
    return replace(plan, stages=tuple(tuple(stage) for stage in stages)) if stages[number] else None


def _put_right(plan: Plan, key: str, graph: ModelGraph) -> Plan | None:
    """The plan with something harmless in place of what was refused; None where the rest means nothing."""
    section, _, below = key.partition(".")
    if section in _NEUTRAL:
        return replace(plan, **{section: _lines(getattr(plan, section), section, below)})  # type: ignore[arg-type]
    if key.startswith("pipeline.stages") and plan.mesh.pipeline:
        return _evenly_cut(plan, plan.mesh.pipeline * (plan.virtual or 1), graph)
    if key in ("pipeline.schedule", "pipeline.virtual") and plan.mesh.pipeline:
        simple = replace(plan, schedule=ScheduleName.ONE_F_ONE_B, virtual=1, zero=_one_level(plan))
        return _evenly_cut(simple, plan.mesh.pipeline, graph)
    if key == "zero" and plan.zero != 0:
        return replace(plan, zero=0, offload=None)
    return None  # another model, or degrees that do not multiply: what follows from it says nothing


def _lines(lines: tuple[PatternLine, ...], section: str, pattern: str) -> tuple[PatternLine, ...]:
    """The lines without the harm that one of them does; with one for the rest, where they leave names out."""
    neutral = _NEUTRAL[section]
    if not pattern:
        return (*lines, PatternLine("*", neutral))
    own = [line for line in lines if line.pattern == pattern]
    if not neutral or all(line.word == neutral for line in own):
        return tuple(line for line in lines if line.pattern != pattern)
    return tuple(replace(line, word=neutral) if line.pattern == pattern else line for line in lines)


def _evenly_cut(plan: Plan, num_stages: int, graph: ModelGraph) -> Plan | None:
    num_blocks = len(graph.blocks)
    if num_stages > num_blocks:
        return None
    firsts = [stage * num_blocks // num_stages for stage in range(num_stages)]
    cut = replace(plan, stages=stage_names(firsts, graph.blocks))
    return None if cut.stages == plan.stages else cut


def _one_level(plan: Plan) -> int | None:
    return min(plan.zero) if isinstance(plan.zero, tuple) else plan.zero
