"""A last look around the best plans: what the search leaves out to be quick is tried for these.

Tables hold the optimum of every block by the table's own costs; close to it, the lowered program may judge
otherwise. So the best candidates are solved once more with all that is near, and small changes are tried.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from autopar.errors import CaptureError
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
_MOST_UNITS, _TOO_MANY_UNITS = 200, 1_000


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
            _improve(state, solution, is_thorough=candidate.tensor > 1 and size <= _TOO_MANY_UNITS)
    return state.best


def _best_of_meshes(ranked: Iterable[MeshSolution], worth_s: float) -> dict[Candidate, MeshSolution]:
    by_mesh: dict[Degrees, dict[Candidate, MeshSolution]] = {}
    for solution in ranked:
        if solution.step_s <= worth_s:
            by_mesh.setdefault(solution.candidate.mesh, {}).setdefault(solution.candidate, solution)
    chosen = [list(own.items())[:_MOST_OF_A_MESH] for own in list(by_mesh.values())[:_MOST_MESHES]]
    return dict(item for own in chosen for item in own)


def _improve(state: Search, known: MeshSolution, *, is_thorough: bool) -> None:
    candidate = known.candidate
    place = candidate.tensor, candidate.micro_batch, candidate.tensor_stride
    try:
        tables = state.choices.tables(*place, thorough=is_thorough)
        found = best_of_tables(tables, candidate, state.job) if is_thorough else known
    except CaptureError as refused:
        state.refused = state.refused or refused
        return
    if isinstance(found, MeshSolution):
        state.add(polished(found, tables[found.table], state.job))
