"""Solving one candidate: the best over its tables (``table_attempt.py``), with a lower bound of all plans.

Where that leaves a gap that matters, the search asks to go through all cuts and ways (``exhaust.py``), as far
as that is little work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autopar.cost.offload import on_device
from autopar.cost.parameter_state import parameter_bytes
from autopar.plan.decisions import Recompute
from autopar.solve.candidate import (
    Candidate,
    Choices,
    ChoiceTable,
    Job,
    MeshSolution,
    Shortfall,
    tables_of,
)
from autopar.solve.chain_build import candidate_training
from autopar.solve.recipes import Recipes
from autopar.solve.spare_memory import better_spent
from autopar.solve.table_attempt import TableAttempt

# Blocks times stages of a chain problem. Where ranks hold several stages each and there are more, stages hold
# a block or two: an even cut leaves little to be found, and finding it would take minutes.
_MOST_PLACES = 5_000


def solve_mesh(
    choices: Choices, candidate: Candidate, job: Job, floors_s: Sequence[float] = ()
) -> MeshSolution | Shortfall:
    """A good way of running the chain under one candidate with a lower bound of all, or by how much it misses
    the memory.

    Args:
        floors_s: by table, what no plan goes below, if known; tables of infinite ones are left out.
    """
    return best_of_tables(tables_of(choices, candidate), candidate, job, floors_s)


def best_of_tables(
    tables: Sequence[ChoiceTable], candidate: Candidate, job: Job, floors_s: Sequence[float] = ()
) -> MeshSolution | Shortfall:
    """The same with given tables."""
    if has_too_many_places(candidate, len(tables[0].blocks) if tables else 0):
        simple = best_recipe(tables, candidate, job)
        if simple is not None:
            return simple
    best: MeshSolution | None = None
    shortfall: Shortfall | None = None
    bound_s = float("inf")
    floors_s = floors_s or [0.0] * len(tables)
    for index in sorted(range(len(tables)), key=lambda index: (floors_s[index], index)):
        if floors_s[index] == float("inf"):
            continue
        attempt = TableAttempt(tables[index], candidate, job)
        free_s = max(attempt.free_floor_s(), floors_s[index])
        if best is not None and free_s >= best.step_s:
            continue
        found = attempt.solve(index)
        if isinstance(found, Shortfall):
            if shortfall is None or found.missing_bytes < shortfall.missing_bytes:
                shortfall = found
            bound_s = min(bound_s, max(found.bound_s, free_s))
            continue
        bound_s = min(bound_s, max(found.bound_s, free_s))
        if best is None or found.step_s < best.step_s:
            best = found
    if best is not None:
        return replace(best, bound_s=min(bound_s, best.step_s))
    shortfall = shortfall or Shortfall(candidate, 0, job.memory_limit_bytes)
    return replace(shortfall, bound_s=bound_s)


def best_recipe(tables: Sequence[ChoiceTable], candidate: Candidate, job: Job) -> MeshSolution | None:
    """The best simple way of running the chain under a candidate; None where none fits."""
    found = Recipes(tables).first_fitting(candidate, job)
    if found is None:
        return None
    layout, prediction = better_spent(found.layout, found.prediction, tables[found.table], job)
    found = replace(found, layout=layout, prediction=prediction)
    floor_s = min(TableAttempt(table, candidate, job).free_floor_s() for table in tables)
    return MeshSolution(
        candidate,
        found.layout,
        found.choices,
        found.prediction,
        min(floor_s, found.step_s),
        found.table,
        memory_binds=any(choice.recompute is not Recompute.NONE for choice in found.choices),
    )


def refine(
    choices: Choices, candidate: Candidate, job: Job, worth_s: float, most_work: int
) -> tuple[MeshSolution | None, float, int]:
    """Looks for a plan of the candidate that is quicker than ``worth_s``.

    Returns:
        the quickest found, if any; a lower bound of all that are quicker (infinite where it is proved that
        none is); the work done.
    """
    best: MeshSolution | None = None
    bound_s, work = float("inf"), 0
    for index, table in enumerate(tables_of(choices, candidate)):
        attempt = TableAttempt(table, candidate, job)
        outcome = attempt.exhaust(most_work - work).run(worth_s)
        work += outcome.work
        if outcome.layout is not None and outcome.prediction is not None:
            chosen = tuple(choice for stage in outcome.layout.stages for choice in stage)
            worth_s = outcome.prediction.step_time_s
            best = MeshSolution(candidate, outcome.layout, chosen, outcome.prediction, worth_s, index)
        if not outcome.complete:
            bound_s = min(bound_s, attempt.free_floor_s())
    return best, bound_s, work


def has_too_many_places(candidate: Candidate, num_blocks: int) -> bool:
    """Whether a candidate's plan is a recipe's, and no chain problem is solved."""
    return candidate.virtual > 1 and num_blocks * candidate.num_stages > _MOST_PLACES


def free_floor_s(choices: Choices, candidate: Candidate, job: Job) -> float:
    """No plan of a candidate has a shorter step, whatever the memory."""
    attempts = (TableAttempt(table, candidate, job) for table in tables_of(choices, candidate))
    return min((attempt.free_floor_s() for attempt in attempts), default=float("inf"))


def shortfall_of(choices: Choices, candidate: Candidate, job: Job) -> Shortfall:
    """What the leanest way of running the chain misses; negative bytes are to spare."""
    found = [TableAttempt(table, candidate, job).shortfall() for table in tables_of(choices, candidate)]
    nothing = Shortfall(candidate, 0, job.memory_limit_bytes)
    return min(found, key=lambda shortfall: shortfall.missing_bytes, default=nothing)


def least_state_bytes(trainable_elements: int, candidate: Candidate, job: Job) -> int:
    """What no rank of the fullest stage can do without: its even share of the parameters' state."""
    elements = trainable_elements // (candidate.pipeline * candidate.tensor)
    training = candidate_training(candidate, job)
    group = training.group
    state = parameter_bytes(elements, 0, min(candidate.zero), group, job.precision, job.optimizer)
    return on_device(state, training).total + job.cluster.device.framework_reserved_bytes
