"""The joint search over all outer decisions, cut by lower bounds.

One queue holds families (degrees and micro-batch) and candidates (a family with schedule, ZeRO level, shard
group, order of the axes, offload), each with a lower bound of its step and a guess of what it may be
(``floors.py``). The bound of a family is tightened twice; then its tables are made and its candidates take
its place, at first without regard to memory. What promises most is worked on first; what cannot be quicker
than the best plan found is dropped. When nothing is left, the best plan is proved. On huge models and
clusters the work is limited: the least bound of what is left then says how far the plan may be from the best.

What lives in host memory can only cost time: offloading is tried where memory bound the same candidate
without it, whose bound it shares.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from autopar.errors import CaptureError, InfeasibleError
from autopar.solve.baselines import baselines
from autopar.solve.candidate import (
    Candidate,
    Choices,
    Family,
    Job,
    MeshSolution,
    SearchResult,
    Shortfall,
)
from autopar.solve.candidates import NO_OFFLOAD, Space, candidates, with_offloads
from autopar.solve.considered import News, considered, news_of
from autopar.solve.floors import Floors, Progress
from autopar.solve.mesh import free_floor_s, refine, solve_mesh
from autopar.solve.runners_up import runners_up
from autopar.solve.scout import Promise, Scout

_TOLERANCE = 1e-9
_MOST_WORK = 200_000
# Units of work: a block in a stage of a solve, and those it may be in one segment with; making tables.
_MOST_UNITS = 16_000
_AGAIN = 0.02
# Of what a quick look promises: how many are solved at once, how many of one family, and how much slower than
# the best plan they may look.
_MOST_SCOUTED = 6
_MOST_OF_A_FAMILY = 2
_WORTH_A_TRY = 1.05
# Going through everything comes after all that may bring a better plan quickly.
_LAST = 1e12
_MOST_WORK_AT_ONCE = 150_000


@dataclass(slots=True)
class Waiting:
    """In the queue; ``effort`` says how much its bound has cost so far, ``guess_s`` what its step may be."""

    bound_s: float
    guess_s: float
    item: Family | Candidate
    effort: int

    def __lt__(self, other: Waiting) -> bool:
        return self.key < other.key

    @property
    def key(self) -> tuple[float, Family, bool, tuple[object, ...]]:
        """By promise; then by degrees, from simple to involved; candidates before families."""
        if isinstance(self.item, Family):
            return self.guess_s, self.item, True, ()
        item = self.item
        return (
            self.guess_s,
            item.family,
            False,
            (item.offload, item.virtual, item.zero, item.schedule, item.order, item.shard_group),
        )


class Search:
    """One search, and what it knows so far."""

    def __init__(
        self,
        choices: Choices,
        space: Space,
        job: Job,
        *,
        deadline: float | None = None,
        progress: Progress | None = None,
        watch: Callable[[News], None] | None = None,
    ) -> None:
        self.choices, self.space, self.job = choices, space, job
        self.queue: list[Waiting] = []
        self.cut: list[Waiting] = []
        self.solved: list[MeshSolution] = []
        self.shortfalls: dict[Candidate, Shortfall] = {}
        self.best: MeshSolution | None = None
        self.refused: CaptureError | None = None
        self.num_candidates = 0
        self.scouted: set[Candidate] = set()
        self.promises: list[Promise] = []
        self.open_bound_s = float("inf")  # of what was given up
        self._work_left, self._units_left = _MOST_WORK, _MOST_UNITS
        self._num_solved: dict[Family, int] = {}
        self._deadline = deadline
        self._progress = progress or (lambda text: None)
        self._watch = watch or (lambda news: None)
        self.floors = Floors(choices, space, job, self._progress)

    @property
    def is_late(self) -> bool:
        """Whether the time is up."""
        return self._deadline is not None and time.monotonic() > self._deadline

    def start(self, families: Iterable[Family]) -> None:
        """Fills the queue; families whose parameters alone never fit are left out."""
        for family in families:
            self.floors.note(family)
            chain_s = self.choices.floor_s(family.tensor, family.micro_batch, 0)
            floor_s = self.floors.family_s(family, chain_s)
            if floor_s < float("inf"):
                self._wait(floor_s, family, 0, chain_s)

    def run(self) -> float:
        """Works the queue off, what promises most first; returns a lower bound of every plan."""
        self._scout()
        while self.queue and not self.is_late and self._units_left > self.floors.units:
            waiting = heapq.heappop(self.queue)
            if self.best is None or waiting.bound_s < self.best.step_s * (1 - _TOLERANCE):
                self._advance(waiting)
            else:
                self.cut.append(waiting)
        return min(self.open_bound_s, min((w.bound_s for w in self.queue), default=float("inf")))

    def _scout(self) -> None:
        """Solves what a quick look at every family promises most, so that much else need not be solved."""
        scout = Scout(self.choices, self.space, self.job, lambda: self.is_late)
        guesses = {w.item: w.guess_s for w in self.queue if isinstance(w.item, Family)}
        bounds = {w.item: w.bound_s for w in self.queue}
        tried: dict[Family, int] = {}
        self.promises = scout.look(guesses)
        for promise in self.promises:
            candidate = promise.candidate
            if self.is_late or len(self.scouted) >= _MOST_SCOUTED:
                break
            if tried.get(candidate.family, 0) >= _MOST_OF_A_FAMILY:
                continue
            if self.best is not None and promise.step_s > _WORTH_A_TRY * self.best.step_s:
                break
            tried[candidate.family] = tried.get(candidate.family, 0) + 1
            self.scouted.add(candidate)
            self.num_candidates += 1
            try:
                self._solve(candidate, bounds[candidate.family])
            except CaptureError as refused:
                self.refused = self.refused or refused

    def _wait(self, bound_s: float, item: Family | Candidate, effort: int, chain_s: float) -> None:
        """Puts something into the queue."""
        guess_s = max(bound_s, self.floors.guess_s(item, chain_s))
        heapq.heappush(self.queue, Waiting(bound_s, guess_s, item, effort))

    def _advance(self, waiting: Waiting) -> None:
        """Tightens the bound of what was first in the queue, opens it, or solves it."""
        item = waiting.item
        try:
            if isinstance(item, Candidate):
                if waiting.effort == 0:
                    floor_s = max(waiting.bound_s, free_floor_s(self.choices, item, self.job))
                    self._wait(floor_s, item, 1, self.floors.table_floor(item).chain_s)
                elif waiting.effort == 1:
                    if not self._is_delayed(item, waiting):
                        self._solve(item, waiting.bound_s)
                else:
                    self._refine(item, waiting.bound_s)
            elif waiting.effort == 0:
                self._tighten(waiting, item)
            else:
                self._open(item, waiting.bound_s)
        except CaptureError as refused:
            # The model does not work at this micro-batch (BatchNorm of one sample, say).
            self.refused = self.refused or refused

    def _open(self, family: Family, bound_s: float) -> None:
        """Puts a family's candidates in its place, unless its activations alone never fit."""
        missing = self.floors.activations_missing(family)
        if missing > 0:
            example = next(candidates(family, self.space))
            self.shortfalls[example] = Shortfall(example, 0, missing)
            self.num_candidates += 1
            return
        for candidate in candidates(family, self.space):
            if candidate.offload != NO_OFFLOAD and self.space.pins.offload is None:
                continue  # joins the queue when memory binds the candidate without
            if candidate in self.scouted:
                continue
            self.num_candidates += 1
            missing = self.floors.certain_shortfall(candidate)
            if missing > 0:
                self._falls_short(candidate, Shortfall(candidate, 0, missing), bound_s)
                continue
            floor = self.floors.table_floor(candidate)
            if floor.is_empty:
                continue
            floor_s = max(bound_s, floor.step_s(candidate, self.job))
            self._wait(floor_s, candidate, 0, floor.chain_s)

    def _is_delayed(self, candidate: Candidate, waiting: Waiting) -> bool:
        """Lets other families have their turn: the more of a family is solved, the less the rest promises."""
        again = _AGAIN * self._num_solved.get(candidate.family, 0)
        guess_s = max(
            waiting.bound_s, self.floors.guess_s(candidate, self.floors.table_floor(candidate).chain_s)
        )
        guess_s *= 1 + again
        if guess_s <= waiting.guess_s:
            self._num_solved[candidate.family] = self._num_solved.get(candidate.family, 0) + 1
            return False
        heapq.heappush(self.queue, Waiting(waiting.bound_s, guess_s, candidate, 1))
        return True

    def _solve(self, candidate: Candidate, bound_s: float) -> None:
        p, d, t = candidate.mesh
        self._progress(
            f"mesh {p} x {d} x {t}, micro-batch {candidate.micro_batch}, ZeRO {max(candidate.zero)}, "
            f"{candidate.schedule}"
        )
        self._watch(news_of(self))
        num_blocks, num_stages = self.choices.num_blocks, candidate.num_stages
        self._units_left -= num_blocks * (num_stages + num_blocks // num_stages)
        found = solve_mesh(self.choices, candidate, self.job)
        if isinstance(found, Shortfall):
            self._falls_short(candidate, found, bound_s)
            if found.bound_s < float("inf"):
                heapq.heappush(self.queue, Waiting(max(found.bound_s, bound_s), _LAST, candidate, 2))
            return
        self.add(found)
        bound_s = max(found.bound_s, bound_s)
        if bound_s < found.step_s * (1 - _TOLERANCE):
            heapq.heappush(self.queue, Waiting(bound_s, _LAST + bound_s, candidate, 2))
        if found.memory_binds:
            self._offload(candidate, bound_s)

    def _refine(self, candidate: Candidate, bound_s: float) -> None:
        """Goes through all plans of a candidate, or what is left of the work allowed."""
        worth_s = self.best.step_s if self.best else float("inf")
        allowed = min(_MOST_WORK_AT_ONCE, self._work_left)
        found, left_s, work = refine(self.choices, candidate, self.job, worth_s, allowed)
        self._work_left -= work
        if found is not None:
            self.add(found)
        self.open_bound_s = min(self.open_bound_s, max(left_s, bound_s))

    def add(self, found: MeshSolution) -> None:
        """Keeps a solution."""
        self.solved.append(found)
        if self.best is None or rank(found) < rank(self.best):
            self.best = found

    def _falls_short(self, candidate: Candidate, shortfall: Shortfall, bound_s: float) -> None:
        self.shortfalls[candidate] = shortfall
        self._offload(candidate, bound_s)

    def _offload(self, candidate: Candidate, bound_s: float) -> None:
        """The same candidate with more or less of it in host memory."""
        if candidate.offload != NO_OFFLOAD or self.space.pins.offload is not None:
            return
        for other in with_offloads(candidate, self.space):
            self.num_candidates += 1
            missing = self.floors.certain_shortfall(other)
            if missing > 0:
                self.shortfalls[other] = Shortfall(other, 0, missing)
            else:
                self._wait(bound_s, other, 0, self.floors.table_floor(other).chain_s)

    def _tighten(self, waiting: Waiting, family: Family) -> None:
        """A family with a better bound: from a larger micro-batch where that is enough, else its own."""
        scaled_s = self.floors.scaled_chain_s(family)
        scaled_floor_s = self.floors.family_s(family, scaled_s)
        if scaled_floor_s > waiting.bound_s * (1 + _TOLERANCE):
            self._wait(scaled_floor_s, family, 0, scaled_s)
            return
        chain_s = self.floors.chain_s(family)
        self._wait(max(waiting.bound_s, self.floors.family_s(family, chain_s)), family, 1, chain_s)


def rank(solution: MeshSolution) -> tuple[object, ...]:
    """Quicker first; of equally quick ones the simpler."""
    candidate = solution.candidate
    return solution.step_s, candidate.offload, candidate


def search(
    choices: Choices,
    families: Iterable[Family],
    space: Space,
    job: Job,
    *,
    num_alternatives: int = 3,
    with_baselines: bool = False,
    time_limit_s: float | None = None,
    progress: Progress | None = None,
    watch: Callable[[News], None] | None = None,
) -> SearchResult | None:
    """The plan of least predicted step time; None where none fits.

    Args:
        num_alternatives: other meshes of which a candidate is solved as well, to be shown beside the best.
        with_baselines: whether the plans that people write by hand are found as well.
        time_limit_s: wall time after which the best found so far is returned with its gap.
        progress: told, in a few words, what is being solved.
        watch: told, before each candidate is solved, how far the search has come.

    Raises:
        InfeasibleError: nothing was found within the time limit.
        CaptureError: the model works at none of the micro-batches.
    """
    deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
    state = Search(choices, space, job, deadline=deadline, progress=progress, watch=watch)
    legal = tuple(families)
    state.start(legal)
    bound_s = state.run()
    best = state.best
    if best is None:
        if state.refused is not None and not state.shortfalls:
            raise state.refused
        if state.queue:
            raise InfeasibleError(
                "no plan was found within the time limit; allow more with --time-limit", binding="time limit"
            )
        return None
    num_solved = len(state.solved) + len(state.shortfalls)
    bound_s = min(bound_s, best.step_s)
    gap = 1 - bound_s / best.step_s
    return SearchResult(
        best=best,
        bound_s=bound_s,
        gap=gap if gap > _TOLERANCE else 0.0,
        num_candidates=state.num_candidates,
        num_solved=num_solved,
        alternatives=runners_up(state, num_alternatives),
        baselines=baselines(state, legal) if with_baselines else (),
        considered=considered(state),
    )
