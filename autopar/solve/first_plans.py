"""Good plans before any proof: what a quick look promises most is solved first.

The better the plan that a proof starts with, the more is cut by bounds alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from autopar.solve.candidate import Family
from autopar.solve.climb import Climb
from autopar.solve.scout import Promise, Scout

if TYPE_CHECKING:
    from autopar.solve.work_queue import Search

# Of what a quick look promises: how many are solved at once, and how much slower than the best plan they may
# look.
_MOST_SCOUTED = 6
_WORTH_A_TRY = 1.05
# Of the work allowed, where first plans and climbing stop; and where looking further does.
_KEPT, _LEAST_KEPT = 0.5, 0.1
# Times the bound of its own candidate: a best plan that is slower is looked for further.
_FAR_OFF = 1.25
# Looking further: how much slower than the best plan a recipe may be, and how many of a family are solved.
_WORTH_ANOTHER_TRY = 1.25
_MOST_OF_A_FAMILY = 3


def find_good_plans(state: Search) -> Climb:
    """Solves what promises most, and climbs from there; nothing is proved."""
    guesses = state.guesses
    climb = Climb(state, guesses)
    _find_first_plans(state, guesses)
    climb.run(_KEPT)
    if state.links_decide or _is_far_off(state):
        with state.work.beyond():
            _try_more(state)
            climb.run(_LEAST_KEPT)
            climb.run_from_other_meshes(_LEAST_KEPT)
            climb.run(_LEAST_KEPT)
    return climb


def _is_far_off(state: Search) -> bool:
    """Whether the best plan is far from the bound of its own candidate: recipes tell little then."""
    return state.best is not None and state.best.step_s > _FAR_OFF * state.best.bound_s


def _find_first_plans(state: Search, guesses: Mapping[Family, float]) -> None:
    """Solves some candidates out of turn.

    Args:
        guesses: of the families' steps.
    """
    scout = Scout(state.choices, state.space, state.job, lambda: state.is_late)
    state.promises = scout.look(guesses)
    state.links_decide = scout.links_decide
    first: dict[Family, Promise] = {}
    for promise in state.promises:
        first.setdefault(promise.candidate.family, promise)
    chosen = list(first.values())[:_MOST_SCOUTED]
    with state.about_to_attempt([promise.candidate for promise in chosen]):
        for promise in chosen:
            is_slow = state.best is not None and promise.step_s > _WORTH_A_TRY * state.best.step_s
            if is_slow or _is_enough(state):
                break
            state.attempt(promise.candidate)


def _try_more(state: Search) -> None:
    """Solves more of what looked good."""
    tries: Counter[Family] = Counter()
    for promise in state.promises:
        best, family = state.best, promise.candidate.family
        if best is None or promise.step_s > _WORTH_ANOTHER_TRY * best.step_s:
            return
        if state.is_late or state.work.left < _LEAST_KEPT:
            return
        if promise.candidate.offload != best.candidate.offload and not best.memory_binds:
            continue  # it could only cost time
        tries[family] += 1
        if tries[family] <= _MOST_OF_A_FAMILY:
            state.attempt(promise.candidate)


def _is_enough(state: Search) -> bool:
    return state.is_late or (state.best is not None and state.work.left < _KEPT)
