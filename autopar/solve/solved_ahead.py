"""Candidates that a search is about to solve one after the other, solved beside it by forks.

Each is solved as the search would, with what it knew when it forked; where the search has learned more when
it comes to a candidate, it solves that one itself. What a search beside it has solved is not solved again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from autopar.errors import CaptureError
from autopar.solve.candidate import Candidate, MeshSolution, Shortfall
from autopar.solve.errands import Errands
from autopar.solve.mesh import solve_mesh

if TYPE_CHECKING:
    from autopar.solve.work_queue import Search

# Units of work of a candidate from which on a fork is worth its start.
LARGE_UNITS = 500
_Key: TypeAlias = tuple[Candidate, tuple[float, ...]]


class SolvedAhead:
    """What solves the candidates of a search.

    Args:
        state: of the search.
        beside: what solves those of a search beside it.
    """

    def __init__(self, state: Search, beside: SolvedAhead | None = None) -> None:
        self._state = state
        self._known: dict[_Key, MeshSolution | Shortfall] = beside._known if beside else {}
        self._errands: Errands | None = None
        self._positions: dict[Candidate, int] = {}

    @contextmanager
    def expecting(self, candidates: Sequence[Candidate]) -> Iterator[None]:
        """Inside, these are going to be solved, in this order."""
        state = self._state
        large = [c for c in candidates if c.num_stages > 1 and state.units_of(c) >= LARGE_UNITS]
        with Errands(
            state.choices,
            state.floors.of_tables,
            [partial(self._try, candidate) for candidate in candidates],
            are_large=len(large) > 1,
            begun=1,
        ) as errands:
            self._errands = errands
            self._positions = {candidate: position for position, candidate in enumerate(candidates)}
            try:
                yield
            finally:
                self._errands, self._positions = None, {}

    def solution(self, candidate: Candidate, floors_s: Sequence[float]) -> MeshSolution | Shortfall:
        """As ``solve_mesh`` finds it."""
        key = candidate, tuple(floors_s)
        if key not in self._known:
            self._known[key] = self._solution(candidate, floors_s)
        return self._known[key]

    def _solution(self, candidate: Candidate, floors_s: Sequence[float]) -> MeshSolution | Shortfall:
        if self._errands is not None and candidate in self._positions:
            made = self._errands.taken(self._positions[candidate])
            if made is not None and made[0] == tuple(floors_s):
                found: MeshSolution | Shortfall = made[1]
                return found
        return solve_mesh(self._state.choices, candidate, self._state.job, floors_s)

    def _try(self, candidate: Candidate) -> tuple[tuple[float, ...], MeshSolution | Shortfall] | None:
        """The candidate's floors and what is found; nothing where the search would not solve it."""
        state = self._state
        try:
            if candidate in state.tried or state.bounded_s(candidate, 0.0) >= state.worth_s:
                return None
            floors_s = state.floors_by_table(candidate)
            return floors_s, solve_mesh(state.choices, candidate, state.job, floors_s)
        except CaptureError:
            return None
