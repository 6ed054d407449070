"""Good plans before any proof: what a quick look promises most is solved first, then what is like it.

The better the plan that a proof starts with, the more is cut by bounds alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autopar.errors import CaptureError
from autopar.solve.bundle import bundles
from autopar.solve.candidate import Candidate, Family
from autopar.solve.candidates import NO_OFFLOAD
from autopar.solve.scout import Scout

if TYPE_CHECKING:
    from autopar.solve.search import Search

_TOLERANCE = 1e-9
# Of what a quick look promises: how many are solved at once, and how much slower than the best plan they may
# look; then how many more of each of their families, of so few ranks that each is bounded quickly.
_MOST_SCOUTED = 6
_WORTH_A_TRY = 1.05
_MOST_IMPROVED = 3
_FEW_RANKS = 2
# Of the work allowed, what is kept for the proof.
_KEPT = 0.5


def find_first_plans(state: Search) -> None:
    """Solves some candidates out of turn."""
    scout = Scout(state.choices, state.space, state.job, lambda: state.is_late)
    guesses = {w.item: w.guess_s for w in state.queue if isinstance(w.item, Family)}
    state.promises = scout.look(guesses)
    tried: dict[Family, None] = {}
    for promise in state.promises:
        family = promise.candidate.family
        if len(tried) >= _MOST_SCOUTED or _is_enough(state):
            break
        if state.best is not None and promise.step_s > _WORTH_A_TRY * state.best.step_s:
            break
        if family not in tried:
            tried[family] = None
            _try(state, promise.candidate)
    for family in tried:
        if family.pipeline <= _FEW_RANKS:
            _try_alike(state, family)


def _try_alike(state: Search, family: Family) -> None:
    """Solves the candidates of a family with the least bounds."""
    alike = (c for b in bundles(family, state.space) if b.offload == NO_OFFLOAD for c in b.members)
    members = [c for c in alike if c not in state.scouted and c.virtual == 1]
    fitting = [c for c in members if state.floors.certain_shortfall(c) <= 0]
    try:
        bounded = sorted((state.bounded_s(c, 0.0), c) for c in fitting)
    except CaptureError as refused:
        state.refused = state.refused or refused
        return
    for least_s, candidate in bounded[:_MOST_IMPROVED]:
        if _is_enough(state) or least_s >= state.worth_s * (1 - _TOLERANCE):
            return
        _try(state, candidate)


def _try(state: Search, candidate: Candidate) -> None:
    """Solves a candidate, if it may be any better."""
    try:
        least_s = state.bounded_s(candidate, 0.0)
        if least_s < state.worth_s * (1 - _TOLERANCE):
            state.scouted.add(candidate)
            state.num_candidates += 1
            state.solve(candidate, least_s)
    except CaptureError as refused:
        state.refused = state.refused or refused


def _is_enough(state: Search) -> bool:
    return state.is_late or (state.best is not None and state.work_left < _KEPT)
