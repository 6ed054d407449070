"""From a good plan to a better one: its neighbours are looked at, the most promising solved, and so on.

A neighbour differs in one outer decision, or in two that go together: schedule and ZeRO level; shard group;
order of the axes; micro-batch; or a factor of the degree of one axis moves to another. Each is looked at by
recipes over its own tables; bounds say which need no look at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from autopar.errors import CaptureError
from autopar.plan.decisions import ScheduleName
from autopar.solve.candidate import Candidate, Degrees, Family, MeshSolution, Offload, tables_of
from autopar.solve.candidates import NO_OFFLOAD, OFFLOADS, candidates
from autopar.solve.recipes import Recipes
from autopar.solve.scout import lengthened_s, shortened

if TYPE_CHECKING:
    from autopar.solve.work_queue import Search

_MOST_ROUNDS = 8
# Of the neighbours: how many are solved in a round, and how much slower than the best plan they may look.
_MOST_SOLVED = 4
_WORTH_A_TRY = 1.15
# No recipe is thought to be farther from the best plan than so many times its step.
_MOST_OFF = 2.0
_FACTORS = (2, 3)
# The ZeRO level at which parameters may be offloaded.
_MOST_SHARED = 3
# Where a climb begins beside the best plan: how many meshes, and how much slower their plans may be.
_MOST_OTHER_MESHES, _NEARLY_AS_GOOD = 3, 1.15
# Of families near by that have no tables yet, how many get them.
_MOST_NEW_TABLES = 4
# Actions of schedules that are played, at most.
_MOST_WORK = 100_000


class Climb:
    """Ascents of one search; what was looked at is not looked at again."""

    def __init__(self, state: Search, families: Iterable[Family]) -> None:
        """
        Args:
            families: that may be searched.
        """
        self._state = state
        self._by_mesh: dict[Degrees, dict[int, Family]] = {}
        for family in families:
            self._by_mesh.setdefault(family.mesh, {})[family.micro_batch] = family
        self._seen: dict[Candidate, float] = {}
        self._attempted: set[Candidate] = set()
        self._tables_left, self._work_left = _MOST_NEW_TABLES, _MOST_WORK

    def run_from_other_meshes(self, kept: float) -> None:
        """Climbs from the best plans of other meshes that are nearly as good as the best of all."""
        best = self._state.best
        if best is None:
            return
        near: dict[Degrees, float] = {}
        for solution in self._state.solved:
            mesh, step_s = solution.candidate.mesh, solution.step_s
            if mesh != best.candidate.mesh and step_s < _NEARLY_AS_GOOD * best.step_s:
                near[mesh] = min(near.get(mesh, step_s), step_s)
        for mesh in sorted(near, key=lambda mesh: (near[mesh], mesh))[:_MOST_OTHER_MESHES]:
            self.run(kept, mesh)

    def run(self, kept: float, mesh: Degrees | None = None) -> None:
        """Climbs until no neighbour promises to be better.

        Args:
            kept: of the work allowed, what is not for this.
            mesh: whose best plan is climbed from, as long as it has one; None: the best of all.
        """
        state = self._state
        for _ in range(_MOST_ROUNDS):
            start = state.best if mesh is None else self._best_of(mesh)
            if start is None or self._is_over(kept):
                return
            # Each once, in an order that is always the same: the work allowed may end among them.
            looks = sorted((self._look_s(c), c) for c in dict.fromkeys(self._neighbours(start)))
            # Recipes of one sort of candidate are about as far from the best there is.
            usual_s = min(self._look_s(start.candidate), _MOST_OFF * start.step_s)
            promising = [c for look_s, c in looks if look_s < _WORTH_A_TRY * max(usual_s, start.step_s)]
            left = _mixed([c for c in promising if c not in self._attempted])
            if not left:
                return
            with state.about_to_attempt(left[:_MOST_SOLVED]):
                for candidate in left[:_MOST_SOLVED]:
                    if not self._is_over(kept):
                        self._attempted.add(candidate)
                        state.attempt(candidate)

    def _best_of(self, mesh: Degrees) -> MeshSolution | None:
        own = (solution for solution in self._state.solved if solution.candidate.mesh == mesh)
        return min(own, key=lambda solution: solution.rank, default=None)

    def _is_over(self, kept: float) -> bool:
        return self._state.is_late or self._state.work.left < kept

    def _neighbours(self, top: MeshSolution) -> Iterator[Candidate]:
        one, offloads = top.candidate, {top.candidate.offload}
        if top.memory_binds and self._state.space.pins.offload is None:
            offloads |= {NO_OFFLOAD, *OFFLOADS}
        yield from self._ways(one.family, one, offloads)
        floors = self._state.floors
        for family in self._families_near(one.family):
            if not floors.is_tabulated(family):
                if self._tables_left == 0:
                    continue
                self._tables_left -= 1
            if floors.scaled(family)[0] < self._state.worth_s:
                yield from self._like(family, one, offloads)

    def _ways(self, family: Family, one: Candidate, offloads: Collection[Offload]) -> Iterator[Candidate]:
        """Other ways of running the same tables."""
        for other in candidates(family, self._state.space):
            if other == one or other.offload not in offloads:
                continue
            same_group = other.shard_group in (one.shard_group, 0)
            same_order, same_level = other.order == one.order, max(other.zero) == max(one.zero)
            same_way = (other.schedule, other.virtual) == (one.schedule, one.virtual)
            if other.offload != one.offload:
                levels = max(one.zero), _MOST_SHARED
                is_near = same_way and same_order and same_group and max(other.zero) in levels
            else:
                is_near = (same_group or same_way) and (same_order or same_level)
            if is_near:
                yield other

    def _like(self, family: Family, one: Candidate, offloads: Collection[Offload]) -> Iterator[Candidate]:
        """Another family run as nearly as it may be in the same way; with offload where it fits only so."""
        fits = False
        for other in candidates(family, self._state.space):
            near = other.tensor_stride == 1 or other.order == one.order
            same_group = other.shard_group in (one.shard_group, 0)
            is_plain = same_group and near and (other.offload in offloads or not fits)
            is_alike = max(other.zero) == max(one.zero) or family.data == 1 or one.data == 1
            same_way = (other.schedule, other.virtual) == (one.schedule, one.virtual)
            if is_plain and is_alike and (same_way or 1 in (family.pipeline, one.pipeline)):
                fits |= self._look_s(other) < float("inf")
                yield other

    def _families_near(self, family: Family) -> Iterator[Family]:
        sizes = sorted(self._by_mesh[family.mesh])
        at = sizes.index(family.micro_batch)
        for near in (at - 1, at + 1, at + 2, at - 2):
            if 0 <= near < len(sizes):
                yield self._by_mesh[family.mesh][sizes[near]]
        degrees = dict(zip(("pipeline", "data", "tensor"), family.mesh, strict=True))
        for source in degrees:
            for target in degrees:
                for factor in _FACTORS:
                    if source == target or degrees[source] % factor:
                        continue
                    moved = {**degrees, source: degrees[source] // factor, target: degrees[target] * factor}
                    mesh = moved["pipeline"], moved["data"], moved["tensor"]
                    yield from self._of_mesh(mesh, family.micro_batch, factor)

    def _of_mesh(self, mesh: Degrees, micro_batch: int, factor: int) -> Iterator[Family]:
        known = self._by_mesh.get(mesh, {})
        for size in (micro_batch, micro_batch * factor, micro_batch // factor):
            if size in known:
                yield known[size]

    def _look_s(self, candidate: Candidate) -> float:
        """Predicted step of the best recipe; infinite where none fits."""
        if self._state.is_late:
            return float("inf")
        if candidate not in self._seen:
            place = candidate.tensor, candidate.micro_batch, candidate.tensor_stride
            known = self._state.floors.recipes
            try:
                if place not in known:
                    self._state.floors.table_floor(candidate)  # which counts the work
                    known[place] = Recipes(tables_of(self._state.choices, candidate))
                short, left = shortened(candidate)
                if short.num_actions > self._work_left:
                    return float("inf")
                self._work_left -= short.num_actions
                tried = known[place].first_fitting(short, self._state.job)
            except CaptureError:
                tried = None
            found_s = lengthened_s(tried, left, self._state.job) if tried is not None else float("inf")
            self._seen[candidate] = found_s
        return self._seen[candidate]


def _mixed(ranked: Sequence[Candidate]) -> list[Candidate]:
    """The first of every schedule, then the second, and so on: looks at different schedules compare badly."""
    seen: Counter[ScheduleName] = Counter()
    turns: list[tuple[int, int, Candidate]] = []
    for position, candidate in enumerate(ranked):
        turns.append((seen[candidate.schedule], position, candidate))
        seen[candidate.schedule] += 1
    return [candidate for _, _, candidate in sorted(turns)]
