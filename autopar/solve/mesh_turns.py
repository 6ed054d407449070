"""A search of every mesh by itself, where the bound says that the best plan may be far from the best one.

Where memory is short or links are slow, a first look at all meshes at once tells little: what is quickest by
FLOPs fits only with all of its activations made again, or not at all. A search of one mesh looks at all its
ways of offloading, and climbs from its own best plan.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from autopar.solve.candidate import Degrees, Family
from autopar.solve.first_plans import find_good_plans

if TYPE_CHECKING:
    from autopar.solve.work_queue import Search

_MOST_MESHES = 16
# Work for all of them and for each. A search stops where half of what it usually has is left.
_MOST_UNITS, _MOST_UNITS_OF_A_MESH = 8_000, 4_500


def give_every_mesh_a_turn(state: Search, families: Iterable[Family]) -> None:
    """Adds to a search the good plans of every mesh that may be better than its best plan.

    Args:
        families: of the search.
    """
    by_mesh: dict[Degrees, list[Family]] = {}
    for family in families:
        by_mesh.setdefault(family.mesh, []).append(family)
    floors_s = {mesh: min(state.floors.scaled(f)[0] for f in own) for mesh, own in by_mesh.items()}
    promised_s: dict[Degrees, float] = {}
    for promise in reversed(state.promises):
        promised_s[promise.candidate.mesh] = promise.step_s
    units_left = _MOST_UNITS

    def turn_of(mesh: Degrees) -> tuple[float, float, Degrees]:
        return promised_s.get(mesh, float("inf")), floors_s[mesh], mesh

    for mesh in sorted(by_mesh, key=turn_of)[:_MOST_MESHES]:
        if state.is_late or units_left <= 0:
            return
        if floors_s[mesh] < state.worth_s:
            turn = state.turn(_MOST_UNITS_OF_A_MESH)
            turn.start(by_mesh[mesh])
            find_good_plans(turn)
            units_left -= _MOST_UNITS_OF_A_MESH - turn.work.units_left
            for found in turn.solved:
                state.add(found)
