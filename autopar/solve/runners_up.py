"""The best plan of each of the next best meshes, and what each loses; from what the search knows already."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from autopar.errors import CaptureError
from autopar.solve.bundle import Bundle
from autopar.solve.candidate import Alternative, Candidate, Degrees, Family, MeshSolution, tables_of
from autopar.solve.candidates import NO_OFFLOAD, candidates
from autopar.solve.mesh import solve_mesh
from autopar.solve.recipes import Recipes
from autopar.solve.why_not import does_not_fit, why_not

if TYPE_CHECKING:
    from autopar.solve.work_queue import Search

_MOST_TRIED = 3
_MOST_NEW_TABLES = 2
# Blocks in stages from which on a simple recipe has to do for a plan that is not the best.
_MANY_UNITS = 1_000


def plans_of_other_meshes(
    state: Search, num_wanted: int, promised: Iterable[MeshSolution | None]
) -> list[MeshSolution]:
    """The best plans of other meshes than the best plan's: those solved on the way, then those next in the
    queue.

    Args:
        promised: plans of what a first look promised most of.
    """
    found = _best_of_others(state, promised)
    if len(found) < num_wanted:
        _solve_more(state, found, num_wanted)
    return list(found.values())


def runners_up(state: Search, num_wanted: int, plans: Iterable[MeshSolution]) -> tuple[Alternative, ...]:
    """Other meshes: those with plans, then those that do not fit.

    Args:
        plans: found besides those of the search.
    """
    best = state.best
    assert best is not None
    found = _best_of_others(state, plans)
    ranked = [
        (s.rank, Alternative(s.candidate, s.prediction, why_not(s, best), s.layout)) for s in found.values()
    ]
    ranked.sort(key=lambda item: item[0])
    alternatives = [alternative for _, alternative in ranked]
    seen = {best.candidate.mesh, *found}
    for candidate, shortfall in sorted(
        state.shortfalls.items(), key=lambda item: (item[1].missing_bytes, item[0])
    ):
        if candidate.mesh not in seen:
            seen.add(candidate.mesh)
            alternatives.append(Alternative(candidate, None, does_not_fit(shortfall.missing_bytes)))
    return tuple(alternatives[:num_wanted])


def _best_of_others(state: Search, besides: Iterable[MeshSolution | None]) -> dict[Degrees, MeshSolution]:
    """By mesh, but for that of the best plan, the quickest plan known."""
    assert state.best is not None
    found: dict[Degrees, MeshSolution] = {}
    for solution in (*state.solved, *besides):
        if solution is None or solution.candidate.mesh == state.best.candidate.mesh:
            continue
        mesh = solution.candidate.mesh
        if mesh not in found or solution.step_s < found[mesh].step_s:
            found[mesh] = solution
    return found


def promised_plans(state: Search, num_wanted: int) -> list[Callable[[], MeshSolution | None]]:
    """What solves what a first look promised most of every other mesh, without proof; each for itself."""
    assert state.best is not None
    first: dict[Degrees, Candidate] = {}
    for promise in state.promises:
        first.setdefault(promise.candidate.mesh, promise.candidate)
    first.pop(state.best.candidate.mesh, None)
    return [partial(_solved, state, candidate) for candidate in list(first.values())[:num_wanted]]


def _solve_more(state: Search, found: dict[Degrees, MeshSolution], num_wanted: int) -> None:
    """Solves a candidate of some more meshes, without proof, the cheapest to solve first."""
    assert state.best is not None
    tried: dict[Degrees, int] = {state.best.candidate.mesh: _MOST_TRIED}
    waiting = sorted(state.cut + state.queue)
    new_tables = 0
    for known_only in (True, False):
        for item in waiting:
            if len(found) >= num_wanted or state.is_late:
                return
            example = item.item
            mesh = example.family.mesh
            if mesh in found or tried.get(mesh, 0) >= _MOST_TRIED:
                continue
            is_known = state.floors.is_tabulated(example)
            if is_known != known_only or (not is_known and new_tables >= _MOST_NEW_TABLES):
                continue
            new_tables += not is_known
            tried[mesh] = tried.get(mesh, 0) + 1
            for candidate in _simple_candidates(state, example):
                solution = _solved(state, candidate)
                if solution is not None:
                    found[mesh] = solution
                    break


def _simple_candidates(state: Search, example: Family | Bundle | Candidate) -> list[Candidate]:
    """A candidate itself; of a family, the two that promise most."""
    if isinstance(example, Candidate):
        return [example]
    family = example.family
    legal = [c for c in candidates(family, state.space) if c.offload == NO_OFFLOAD and c.tensor_stride == 1]
    legal = legal or list(candidates(family, state.space))[:1]
    try:
        return sorted(legal, key=lambda c: (state.floors.table_floor(c).step_s(c, state.job), c))[:2]
    except CaptureError:
        return []


def _solved(state: Search, candidate: Candidate) -> MeshSolution | None:
    """A plan of a candidate, without proof."""
    if state.is_late:
        return None
    try:
        if state.choices.num_blocks * candidate.num_stages > _MANY_UNITS:
            return _by_recipe(state, candidate)
        found = solve_mesh(state.choices, candidate, state.job)
    except CaptureError:
        return None
    return replace(found, bound_s=0.0) if isinstance(found, MeshSolution) else None


def _by_recipe(state: Search, candidate: Candidate) -> MeshSolution | None:
    tried = Recipes(tables_of(state.choices, candidate)).first_fitting(candidate, state.job)
    if tried is None:
        return None
    return MeshSolution(candidate, tried.layout, tried.choices, tried.prediction, 0.0, tried.table, False)
