"""The joint search over all outer decisions, cut by lower bounds.

One queue holds families (degrees and micro-batch), bundles (candidates of a family that run one schedule and
offload the same) and candidates, each with a lower bound of its step (``floors.py``). A family is bounded by
FLOPs, then by tables that it shares with others; then its own tables are made and its bundles take its place.
A bundle is bounded by the continuous relaxation of all its candidates at once (``relaxation.py``), which
knows memory, the bubble and what is synchronised; then by those of each candidate, which is solved last. A
few good plans come first (``first_plans.py``); from then on the least bound is worked on, and what cannot be
quicker than the best plan found is dropped. When nothing is left, the best plan is proved. On huge models and
clusters the work is limited: the least bound of what is left then says how far the plan may be from the best.

What lives in host memory can only cost time: offloading is tried where memory makes a difference to the same
schedule without it.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from autopar.errors import CaptureError
from autopar.plan.decisions import ScheduleName
from autopar.solve.bundle import Bundle, bundles
from autopar.solve.candidate import Candidate, Choices, Family, Job, MeshSolution, Shortfall
from autopar.solve.candidates import NO_OFFLOAD, Space, candidates
from autopar.solve.climb import Climb
from autopar.solve.closer_bounds import come_closer
from autopar.solve.considered import News, news_of
from autopar.solve.expected import Expected
from autopar.solve.first_plans import find_good_plans
from autopar.solve.floors import Floors, Progress
from autopar.solve.mesh import free_floor_s, has_too_many_places, refine
from autopar.solve.scout import Promise
from autopar.solve.solved_ahead import SolvedAhead
from autopar.solve.turns import give_turns, go_through_the_best
from autopar.solve.waiting import Waiting
from autopar.solve.work_allowed import MOST_UNITS, WorkAllowed

_TOLERANCE = 1e-9
_MOST_WORK = 200_000
# Of the work allowed, what may be spent beyond it on the neighbours of the best plan.
_MORE = 0.6
# Times the least bound of all: a best plan that is slower may be far from the best there is.
_MAY_BE_FAR_OFF = 1.33
# Times the best plan of the search beside: what may be slower still is of no interest.
_NEAR_ENOUGH = 1.15
# Of a proof that is farther from its end, so much more work is done.
_WORTH_MORE_PROOF, _MORE_UNITS = 0.05, 1_200
# Going through everything comes after all that may bring a better plan quickly.
_LAST = 1e12
_MOST_WORK_AT_ONCE = 150_000


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
        beside: Search | None = None,
        units: int = MOST_UNITS,
        effort: int = 1,
    ) -> None:
        """
        Args:
            deadline: of ``time.monotonic``.
            beside: another search of the same space, whose bounds it shares; what is much slower than that
                one's best plan is of no interest.
            units: of work allowed.
            effort: times as much work allowed, once a search has done what it usually does.
        """
        self.choices, self.space, self.job = choices, space, job
        self.queue: list[Waiting] = []
        self.cut: list[Waiting] = []
        self.solved: list[MeshSolution] = []
        self.shortfalls: dict[Candidate, Shortfall] = {}
        self.best: MeshSolution | None = None
        self.refused: CaptureError | None = None
        self._met: set[Candidate] = set()
        self.tried: set[Candidate] = set()
        self.promises: list[Promise] = []
        self.links_decide = self.may_be_far_off = False
        self.open_bound_s = float("inf")  # of what was given up
        self._effort, self._work_left = effort, _MOST_WORK * effort
        self._expected = Expected()
        self._by_table: dict[Candidate, list[float]] = {}
        self._offloaded: set[tuple[Family, ScheduleName, int]] = set()
        self._opened_s: dict[Family, float] = {}  # the bound of each that was opened
        self._deadline = deadline
        self._progress = progress or (lambda text: None)
        self._watch = watch or (lambda news: None)
        self._beside = beside
        self.floors: Floors = beside.floors if beside else Floors(choices, space, job, self._progress)
        # Which of several searches makes the tables that they share does not decide how far each gets.
        self.work = WorkAllowed(None if beside else self.floors, units)
        self._ahead: SolvedAhead = SolvedAhead(self, beside._ahead if beside else None)

    @property
    def num_candidates(self) -> int:
        """That were considered so far."""
        return len(self._met)

    @property
    def is_late(self) -> bool:
        """Whether the time is up."""
        return self._deadline is not None and time.monotonic() > self._deadline

    def start(self, families: Iterable[Family]) -> None:
        """Fills the queue; families whose parameters alone never fit are left out."""
        for family in families:
            self.floors.note(family)
            chain_s = self.choices.floor_s(family.tensor, family.micro_batch)
            floor_s = self.floors.family_s(family, chain_s)
            if floor_s < float("inf"):
                self._wait(floor_s, family, 0, chain_s)

    def run(self) -> float:
        """Works the queue off, what promises most first; returns a lower bound of every plan."""
        climb = find_good_plans(self)
        self._tighten()
        self.may_be_far_off = self._is_far_from_bounds()
        if self.may_be_far_off:
            with self.work.beyond():
                give_turns(self, self.guesses)
                go_through_the_best(self)
        with self.work.beyond():
            come_closer(self)
        self._work_off(climb)
        if self._effort > 1 and self.queue:
            self.work.allow((self._effort - 1) * MOST_UNITS)
            self._work_off(climb)
        return self._bound_s

    def prove(self) -> float:
        """Works on while the best plan is far from what is proved; returns a lower bound of every plan."""
        if self.best is not None and self._bound_s < (1 - _WORTH_MORE_PROOF) * self.best.step_s:
            self.work.allow(_MORE_UNITS - self.work.units_left)
            self._work_off()
        return self._bound_s

    @property
    def _bound_s(self) -> float:
        """The least of what was given up and of all that is left."""
        return min(self.open_bound_s, min((w.bound_s for w in self.queue), default=float("inf")))

    def _work_off(self, climb: Climb | None = None) -> None:
        """Works the queue off as far as the work allowed goes, then looks around the best plan."""
        while self.queue and not self.is_late and self.work.left > 0:
            waiting = heapq.heappop(self.queue)
            if self.best is None or waiting.bound_s < self.best.step_s * (1 - _TOLERANCE):
                self._advance(waiting)
            else:
                self.cut.append(waiting)
        if climb is not None:
            climb.run(-_MORE)

    @property
    def guesses(self) -> dict[Family, float]:
        """Of the steps of the families that wait."""
        return {w.item: w.guess_s for w in self.queue if isinstance(w.item, Family)}

    def turn(self, units: int) -> Search:
        """A search for the same beside this one, with so much work allowed."""
        tell, until = self._progress, self._deadline
        space, job = self.space, self.job
        return Search(self.choices, space, job, deadline=until, progress=tell, beside=self, units=units)

    def _is_far_from_bounds(self) -> bool:
        """Whether the best plan is far from the bound of all that is left."""
        least_s = min((waiting.bound_s for waiting in self.queue), default=float("inf"))
        return self.best is not None and self.best.step_s > _MAY_BE_FAR_OFF * least_s

    def _tighten(self) -> None:
        """From here on it is the proof that counts: a first bound for all families, and the least first."""
        if self.best is None:
            return
        waiting, self.queue = self.queue, []
        for one in waiting:
            one.guess_s = one.bound_s
            if isinstance(one.item, Family) and one.bound_s < self.worth_s and not self.is_late:
                one.bound_s = one.guess_s = max(one.bound_s, self.floors.scaled(one.item)[0])
            heapq.heappush(self.queue, one)

    def _wait(self, bound_s: float, item: Family | Bundle | Candidate, effort: int, chain_s: float) -> None:
        """Puts something into the queue."""
        guess_s = bound_s if self.best else max(bound_s, self.floors.guess_s(item, chain_s))
        heapq.heappush(self.queue, Waiting(bound_s, guess_s, item, effort))

    def _advance(self, waiting: Waiting) -> None:
        """Tightens the bound of what was first in the queue, opens it, or solves it."""
        item = waiting.item
        try:
            if isinstance(item, Candidate):
                if waiting.effort == 0:
                    self._relax_one(item, waiting.bound_s)
                elif waiting.effort == 1:
                    if not self._is_delayed(item, waiting):
                        self.solve(item, waiting.bound_s)
                else:
                    self._refine(item, waiting.bound_s)
            elif isinstance(item, Bundle):
                if waiting.effort == 0:
                    self._relax(item, waiting.bound_s)
                else:
                    self._unpack(item, waiting.bound_s)
            elif not self._is_tightened(item, waiting):
                self._open(item, waiting.bound_s)
        except CaptureError as refused:
            # The model does not work at this micro-batch (BatchNorm of one sample, say).
            self.refused = self.refused or refused

    def _open(self, family: Family, bound_s: float) -> None:
        """Puts a family's candidates in its place, unless its activations alone never fit."""
        self._opened_s[family] = bound_s
        missing = self.floors.activations_missing(family)
        if missing > 0:
            example = next(candidates(family, self.space))
            self.shortfalls[example] = Shortfall(example, 0, missing)
            self._met.add(example)
            return
        for bundle in bundles(family, self.space):
            if bundle.offload == NO_OFFLOAD or self.space.pins.offload is not None:
                self._add_bundle(bundle, bound_s)

    def _add_bundle(self, bundle: Bundle, bound_s: float) -> None:
        self._met.update(bundle.members)
        floor = self.floors.table_floor(bundle.family)
        if not floor.is_empty:
            floor_s = floor.step_s(bundle.members[0], self.job) + self.floors.update_s(bundle.members)
            floor_s = max(bound_s, floor_s)
            self._wait(floor_s, bundle, 0, floor.chain_s)

    def _relax(self, bundle: Bundle, bound_s: float) -> None:
        """Bounds candidates together by their relaxation."""
        members = []
        for candidate in bundle.members:
            missing = self.floors.certain_shortfall(candidate)
            if missing > 0:
                self._falls_short(candidate, Shortfall(candidate, 0, missing))
            elif candidate not in self.tried:
                members.append(candidate)
        if not members:
            return
        left = replace(bundle, members=tuple(members))
        chain_s = self.floors.table_floor(bundle.family).chain_s
        kinds = [(bundle.schedule, bundle.virtual)]
        least_s = self.floors.divided_s(bundle.family, members, self.worth_s, kinds)
        is_raised = least_s > bound_s * (1 + _TOLERANCE)
        if is_raised:
            self._offload(members[0])  # memory may be what made the difference
        else:
            least_s = max(bound_s, self._relaxed_s(members, left.nearest))
        if least_s < float("inf"):
            self._wait(least_s, left, 0 if is_raised else 1, chain_s)

    def _relaxed_s(self, members: Sequence[Candidate], tables: Candidate | Family) -> float:
        """What no plan of candidates of a bundle goes below; they may offload where memory matters.

        Args:
            tables: whose these are.
        """
        found = self.floors.relaxed(members, tables, self.worth_s)
        if any(one.step_s > one.free_s * (1 + _TOLERANCE) for one in found):
            self._offload(members[0])
        if tables is members[0]:
            self._by_table[members[0]] = [one.step_s for one in found]
        return min((one.step_s for one in found), default=float("inf"))

    def _unpack(self, bundle: Bundle, bound_s: float) -> None:
        """Puts parts of a bundle in its place, or its only candidate."""
        chain_s = self.floors.table_floor(bundle.family).chain_s
        for part in bundle.parts():
            if len(part.members) > 1:
                self._wait(bound_s, part, 0, chain_s)
            else:
                self._wait(
                    bound_s, part.members[0], 1 if part is bundle and part.has_its_tables else 0, chain_s
                )

    def _relax_one(self, candidate: Candidate, bound_s: float) -> None:
        """A candidate with a better bound, if it may fit."""
        bound_s = self.bounded_s(candidate, bound_s)
        if bound_s < float("inf"):
            self._wait(bound_s, candidate, 1, self.floors.table_floor(candidate).chain_s)

    def bounded_s(self, candidate: Candidate, bound_s: float) -> float:
        """A better lower bound of one candidate; infinite where it does not fit."""
        bound_s = max(bound_s, free_floor_s(self.choices, candidate, self.job))
        return bound_s if bound_s >= self.worth_s else max(bound_s, self._relaxed_s((candidate,), candidate))

    @property
    def worth_s(self) -> float:
        """Only what is quicker is of interest."""
        if self.best is None:
            return float("inf")
        # What is a little slower than a plan found beside this search may lead to a quicker one.
        known_s = _NEAR_ENOUGH * self._beside.worth_s if self._beside else float("inf")
        return min(self.best.step_s, known_s)

    def _is_delayed(self, candidate: Candidate, waiting: Waiting) -> bool:
        """Lets others have their turn that are expected to bring more."""
        guess_s = self._expected.step_s(candidate, waiting.bound_s)
        if guess_s <= waiting.guess_s:
            self._expected.begin(candidate)
            return False
        heapq.heappush(self.queue, Waiting(waiting.bound_s, guess_s, candidate, 1))
        return True

    def units_of(self, candidate: Candidate) -> int:
        """Of the work allowed, what solving a candidate takes."""
        num_blocks, num_stages = self.choices.num_blocks, candidate.num_stages
        if has_too_many_places(candidate, num_blocks):
            return num_stages
        return num_blocks * (num_stages + num_blocks // num_stages)

    def floors_by_table(self, candidate: Candidate) -> tuple[float, ...]:
        """What no plan of a candidate goes below, by table; empty where it is not known."""
        return tuple(self._by_table.get(candidate, ()))

    def about_to_attempt(self, candidates: Sequence[Candidate]) -> AbstractContextManager[None]:
        """Inside, these are going to be attempted, in this order."""
        return self._ahead.expecting(candidates)

    def attempt(self, candidate: Candidate) -> None:
        """Solves a candidate out of turn, if it may be any better."""
        try:
            least_s = self.bounded_s(candidate, 0.0)
            if candidate not in self.tried and least_s < self.worth_s * (1 - _TOLERANCE):
                self._met.add(candidate)
                self.solve(candidate, least_s)
        except CaptureError as refused:
            self.refused = self.refused or refused

    def solve(self, candidate: Candidate, bound_s: float) -> None:
        """Finds a plan of a candidate, or what it lacks; what is left to prove of it waits."""
        p, d, t = candidate.mesh
        size, level = candidate.micro_batch, max(candidate.zero)
        self._progress(f"mesh {p} x {d} x {t}, micro-batch {size}, ZeRO {level}, {candidate.schedule}")
        self._watch(news_of(self))
        self.tried.add(candidate)
        self.work.spend(self.units_of(candidate))
        found = self._ahead.solution(candidate, self.floors_by_table(candidate))
        if isinstance(found, Shortfall):
            self._falls_short(candidate, found)
            if found.bound_s < float("inf"):
                heapq.heappush(self.queue, Waiting(max(found.bound_s, bound_s), _LAST, candidate, 2))
            return
        self.add(found)
        bound_s = max(found.bound_s, bound_s)
        self._expected.learn(candidate, found.step_s, bound_s)
        if bound_s < found.step_s * (1 - _TOLERANCE):
            heapq.heappush(self.queue, Waiting(bound_s, _LAST + bound_s, candidate, 2))
        if found.memory_binds:
            self._offload(candidate)

    def _refine(self, candidate: Candidate, bound_s: float) -> None:
        """Goes through all plans of a candidate, or what is left of the work allowed."""
        allowed = min(_MOST_WORK_AT_ONCE * self._effort, self._work_left)
        found, left_s, work = refine(self.choices, candidate, self.job, self.worth_s, allowed)
        self._work_left -= work
        if found is not None:
            self.add(found)
        self.open_bound_s = min(self.open_bound_s, max(left_s, bound_s))

    def add(self, found: MeshSolution) -> None:
        """Keeps a solution."""
        self.solved.append(found)
        if self.best is None or found.rank < self.best.rank:
            self.best = found

    def _falls_short(self, candidate: Candidate, shortfall: Shortfall) -> None:
        self.shortfalls[candidate] = shortfall
        self._offload(candidate)

    def _offload(self, candidate: Candidate) -> None:
        """The same family and schedule with more or less of it in host memory."""
        key = candidate.family, candidate.schedule, candidate.virtual
        if candidate.offload != NO_OFFLOAD or self.space.pins.offload is not None or key in self._offloaded:
            return
        self._offloaded.add(key)
        for bundle in bundles(candidate.family, self.space):
            if bundle.offload != NO_OFFLOAD and (bundle.schedule, bundle.virtual) == key[1:]:
                self._add_bundle(bundle, self._opened_s.get(candidate.family, 0.0))

    def _is_tightened(self, family: Family, waiting: Waiting) -> bool:
        """Whether tables that a family shares with others give it a better bound; it waits with that."""
        floor_s, chain_s = self.floors.scaled(family)
        if floor_s <= waiting.bound_s * (1 + _TOLERANCE):
            return False
        self._wait(floor_s, family, 1, chain_s)
        return True
