"""A search of every mesh, and of every micro-batch, by itself, where the bound says that the best plan may be
far from the best one.

Where memory is short or links are slow, a first look at all meshes at once tells little: what is quickest by
FLOPs fits only with all of its activations made again, or not at all. A search of one mesh, or of one
micro-batch, looks at all its ways of offloading, and climbs from its own best plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from autopar.solve.candidate import Family
from autopar.solve.first_plans import find_good_plans
from autopar.solve.mesh import refine

if TYPE_CHECKING:
    from autopar.solve.work_queue import Search

_MOST_TURNS = 16
# So few that every micro-batch has a turn, too: of more, those take minutes.
_FEW_DEVICES = 8
# Work for all turns of a kind, and for each. A search stops where half of what it usually has is left.
_MOST_UNITS, _MOST_UNITS_OF_A_TURN = 8_000, 4_500
# Of candidates that are gone through: how many, how much slower than the best plan theirs may be, and for how
# much work.
_MOST_GONE_THROUGH, _WORTH_GOING_THROUGH, _MOST_WORK = 8, 1.3, 150_000


def give_turns(state: Search, families: Iterable[Family]) -> None:
    """Adds to a search the good plans of every mesh, and of few devices those of every micro-batch, that may
    be better than its best plan.

    Args:
        families: of the search.
    """
    every = list(families)
    floors_s = {family: state.floors.scaled(family)[0] for family in every}
    _give_each_a_turn(state, every, floors_s, lambda family: family.mesh)
    if state.job.cluster.num_devices <= _FEW_DEVICES:
        _give_each_a_turn(state, every, floors_s, lambda family: (family.micro_batch,))


def _give_each_a_turn(
    state: Search,
    families: Sequence[Family],
    floors_s: Mapping[Family, float],
    part_of: Callable[[Family], tuple[int, ...]],
) -> None:
    """Searches the families of each part by themselves, what promises most first."""
    parts: dict[tuple[int, ...], list[Family]] = {}
    for family in families:
        parts.setdefault(part_of(family), []).append(family)
    promised_s: dict[tuple[int, ...], float] = {}
    for promise in reversed(state.promises):
        promised_s[part_of(promise.candidate.family)] = promise.step_s
    least_s = {part: min(floors_s[family] for family in own) for part, own in parts.items()}
    units_left = _MOST_UNITS

    def turn_of(part: tuple[int, ...]) -> tuple[float, float, tuple[int, ...]]:
        return promised_s.get(part, float("inf")), least_s[part], part

    for part in sorted(parts, key=turn_of)[:_MOST_TURNS]:
        if state.is_late or units_left <= 0:
            return
        if least_s[part] < state.worth_s:
            turn = state.turn(_MOST_UNITS_OF_A_TURN)
            turn.start(parts[part])
            find_good_plans(turn)
            units_left -= _MOST_UNITS_OF_A_TURN - turn.work.units_left
            for found in turn.solved:
                state.add(found)


def go_through_the_best(state: Search) -> None:
    """Goes through all plans of a search's best candidates, as far as a little work goes: where memory is
    short, what solving finds of one may be a quarter slower than its best plan.
    """
    assert state.best is not None
    near_s = _WORTH_GOING_THROUGH * state.best.step_s
    ranked = sorted(state.solved, key=lambda found: found.rank)
    near = dict.fromkeys(found.candidate for found in ranked if found.step_s < near_s)
    for candidate in list(near)[:_MOST_GONE_THROUGH]:
        if state.is_late:
            return
        found, _, _ = refine(state.choices, candidate, state.job, state.worth_s, _MOST_WORK)
        if found is not None:
            state.add(found)
