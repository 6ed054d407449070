"""A last look around the best plans: what the search leaves out to be quick is tried for these.

Tables hold the optimum of every block by the table's own costs; close to it, the lowered program may judge
otherwise. So the best candidates are solved once more with all that is near, and small changes are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from autopar.errors import CaptureError
from autopar.plan.decisions import ScheduleName
from autopar.solve.candidate import Candidate, Degrees, MeshSolution, Shortfall
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
Found: TypeAlias = MeshSolution | Shortfall | CaptureError | None
"""Of a look: a plan, or why there is none."""


@dataclass(frozen=True, slots=True)
class _Look:
    """At one candidate.

    Attributes:
        known: a solution of it; None: it was not solved.
        is_thorough: whether it is solved anew with all options of its blocks.
    """

    candidate: Candidate
    known: MeshSolution | None = None
    is_thorough: bool = False


def last_looks(state: Search, bound_s: float) -> list[Callable[[], Found]]:
    """What solves the best candidates anew with thorough tables, and the most promising of what was not
    solved, each for itself; see ``add_found``.

    Args:
        bound_s: no plan of the tables made so far is quicker.
    """
    assert state.best is not None
    others = _others(state) if bound_s < state.best.step_s else []
    return [partial(_found, state, look) for look in (*_best(state), *others)]


def add_found(state: Search, found: Found) -> None:
    """Keeps what a look has found."""
    if isinstance(found, MeshSolution):
        state.add(found)
    elif isinstance(found, CaptureError):
        state.refused = state.refused or found


def _best(state: Search) -> list[_Look]:
    """The best that was solved."""
    assert state.best is not None
    ranked = sorted(state.solved, key=lambda solution: solution.rank)
    worth_s = _WORTH_A_LOOK * state.best.step_s
    promising: dict[Candidate, MeshSolution] = {}
    for solution in ranked:
        if solution.step_s <= worth_s and len(promising) < _MOST_CANDIDATES:
            promising.setdefault(solution.candidate, solution)
    if state.may_be_far_off:
        promising |= _best_of_meshes(ranked, _WORTH_A_FURTHER_LOOK * state.best.step_s)
    looks, units = [], 0
    for candidate, solution in promising.items():
        if units < _MOST_UNITS or state.may_be_far_off:
            size = _units(state, candidate)
            units += size
            looks.append(_Look(candidate, solution, candidate.tensor > 1 and size <= _TOO_MANY_UNITS))
    return looks


def _others(state: Search) -> list[_Look]:
    """What promises most of the schedules and meshes that were not solved, one of each."""
    assert state.best is not None
    seen = {_kind(solution.candidate) for solution in state.solved}
    worth_s = _WORTH_A_LOOK * state.best.step_s
    looks: list[_Look] = []
    for promise in state.promises:
        if promise.step_s > worth_s or len(looks) == _MOST_CANDIDATES:
            break
        candidate = promise.candidate
        if _kind(candidate) not in seen:
            seen.add(_kind(candidate))
            looks.append(_Look(candidate))
    return looks


def _units(state: Search, candidate: Candidate) -> int:
    return state.choices.num_blocks * candidate.num_stages


def _kind(candidate: Candidate) -> tuple[Degrees, ScheduleName]:
    return candidate.mesh, candidate.schedule


def _best_of_meshes(ranked: Iterable[MeshSolution], worth_s: float) -> dict[Candidate, MeshSolution]:
    by_mesh: dict[Degrees, dict[Candidate, MeshSolution]] = {}
    for solution in ranked:
        if solution.step_s <= worth_s:
            by_mesh.setdefault(solution.candidate.mesh, {}).setdefault(solution.candidate, solution)
    chosen = [list(own.items())[:_MOST_OF_A_MESH] for own in list(by_mesh.values())[:_MOST_MESHES]]
    return dict(item for own in chosen for item in own)


def _found(state: Search, look: _Look) -> Found:
    """A solution after all small changes that help, or why there is none."""
    if state.is_late:
        return None
    candidate = look.candidate
    try:
        tables = state.choices.tables(
            candidate.tensor, candidate.micro_batch, candidate.tensor_stride, thorough=look.is_thorough
        )
        if look.known is not None and not look.is_thorough:
            return polished(look.known, tables[look.known.table], state.job)
        found = best_of_tables(tables, candidate, state.job)
    except CaptureError as refused:
        return refused
    return polished(found, tables[found.table], state.job) if isinstance(found, MeshSolution) else found
