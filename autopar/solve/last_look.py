"""A last look around the best plans: what the search leaves out to be quick is tried for these.

Tables hold the optimum of every block by the table's own costs; close to it, the lowered program may judge
otherwise. So the best candidates are solved once more with all that is near, and small changes are tried.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from autopar.errors import CaptureError
from autopar.plan.decisions import ScheduleName
from autopar.solve.candidate import Candidate, Degrees, MeshSolution
from autopar.solve.mesh import best_of_tables
from autopar.solve.polish import polished

if TYPE_CHECKING:
    from autopar.solve.work_queue import Search

_MOST_CANDIDATES = 3
_WORTH_A_LOOK = 1.03
# The same, where the best plan may be far from the best there is: some of every mesh are looked at, besides.
_MOST_MESHES, _MOST_OF_A_MESH = 4, 3
_WORTH_A_FURTHER_LOOK = 1.1
# Blocks in stages: another candidate is tried while those before had no more of them; of so many, tables are
# not made anew.
_MOST_UNITS, _TOO_MANY_UNITS = 1_000, 1_000


def look_again(state: Search) -> MeshSolution:
    """Solves the best candidates with thorough tables; the best plan then."""
    assert state.best is not None
    ranked = sorted(state.solved, key=lambda solution: solution.rank)
    worth_s = _WORTH_A_LOOK * state.best.step_s
    promising: dict[Candidate, MeshSolution] = {}
    for solution in ranked:
        if solution.step_s <= worth_s and len(promising) < _MOST_CANDIDATES:
            promising.setdefault(solution.candidate, solution)
    if state.may_be_far_off:
        promising |= _best_of_meshes(ranked, _WORTH_A_FURTHER_LOOK * state.best.step_s)
    units = 0
    for candidate, solution in promising.items():
        if (units < _MOST_UNITS or state.may_be_far_off) and not state.is_late:
            size = state.choices.num_blocks * candidate.num_stages
            units += size
            _improve(state, candidate, solution, is_thorough=candidate.tensor > 1 and size <= _TOO_MANY_UNITS)
    _try_others(state)
    return state.best


def _try_others(state: Search) -> None:
    """Solves what promises most of the schedules and meshes that were not solved, one of each."""
    assert state.best is not None
    seen = {_kind(solution.candidate) for solution in state.solved}
    worth_s, tries = _WORTH_A_LOOK * state.best.step_s, 0
    for promise in state.promises:
        if promise.step_s > worth_s or tries == _MOST_CANDIDATES or state.is_late:
            return
        if _kind(promise.candidate) not in seen:
            seen.add(_kind(promise.candidate))
            tries += 1
            _improve(state, promise.candidate, None, is_thorough=False)


def _kind(candidate: Candidate) -> tuple[Degrees, ScheduleName]:
    return candidate.mesh, candidate.schedule


def _best_of_meshes(ranked: Iterable[MeshSolution], worth_s: float) -> dict[Candidate, MeshSolution]:
    by_mesh: dict[Degrees, dict[Candidate, MeshSolution]] = {}
    for solution in ranked:
        if solution.step_s <= worth_s:
            by_mesh.setdefault(solution.candidate.mesh, {}).setdefault(solution.candidate, solution)
    chosen = [list(own.items())[:_MOST_OF_A_MESH] for own in list(by_mesh.values())[:_MOST_MESHES]]
    return dict(item for own in chosen for item in own)


def _improve(state: Search, candidate: Candidate, known: MeshSolution | None, *, is_thorough: bool) -> None:
    """Adds a solution of a candidate after all small changes that help.

    Args:
        known: the solution, if there is one already.
    """
    place = candidate.tensor, candidate.micro_batch, candidate.tensor_stride
    try:
        tables = state.choices.tables(*place, thorough=is_thorough)
        is_known = known is not None and not is_thorough
        found = known if is_known else best_of_tables(tables, candidate, state.job)
    except CaptureError as refused:
        state.refused = state.refused or refused
        return
    if isinstance(found, MeshSolution):
        state.add(polished(found, tables[found.table], state.job))
