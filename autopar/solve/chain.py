"""Level 2: cut a chain of blocks into stages and choose how each block runs, exactly, within every stage's
memory.

    minimise    Σ_s t_s + (m - 1) · max_s t_s
    over        cuts of the chain into stages, and an option of every block
    subject to  words of neighbouring blocks meet, memory of every stage <= limit

where t_s is the least time of the stage's segment within its memory (``segments.py``), since both terms grow
with it. For a fixed bound θ on the slowest stage the best cut is a shortest path over (stage, block, word)
(shortest_path). Its length falls as θ grows, so that between two bounds the objective is at least
``length(upper) + (m - 1) · lower``: the sweep halves intervals of θ and drops those whose bound does not
beat the best cut found (sweep). Only segments that are quicker than the largest θ worth trying are ever
costed (widen). The result is optimal,
except where a Pareto front was too large to be carried whole: then the ILP of ``chain_ilp.py`` is given a
while to do better, or else to bound by how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from autopar.solve.chain_ilp import solve_chain_ilp
from autopar.solve.chain_problem import ChainProblem, ChainSolution, evaluate_chain, objective_s
from autopar.solve.compositions import Compositions
from autopar.solve.segment_paths import SegmentPaths
from autopar.solve.segments import Segments

_WIDENINGS = (1.02, 1.1, 1.25, 1.6, 2.5, 5.0, float("inf"))
_RELATIVE_TOLERANCE = 1e-12
_PROOF_S = 20.0
_NO_LIMIT = 2**60


@dataclass(frozen=True, slots=True)
class _Cut:
    """A shortest path: length, slowest stage, first block and (input, output) word of every stage."""

    total_s: float
    slowest_s: float
    first_blocks: tuple[int, ...]
    words: tuple[tuple[int, int], ...]

    def objective_s(self, num_micro_batches: int) -> float:
        return self.total_s + (num_micro_batches - 1) * self.slowest_s


class ChainSolver:
    """Solves one chain problem; keeps what it computed, for the solution and for the diagnosis of a
    failure."""

    def __init__(
        self, problem: ChainProblem, proof_s: float = _PROOF_S, like: ChainSolver | None = None
    ) -> None:
        """
        Args:
            proof_s: seconds for the ILP where a front was cut short; 0: the solution is not proved.
            like: of a problem that differs in memory alone, whose work is used again.
        """
        self._problem = problem
        self._proof_s = proof_s
        self._size = len(problem.blocks)
        self._segments: dict[tuple[int, int, int], Segments] = {}
        self._costs: dict[int, NDArray[np.float64]] = {}
        self._bare: dict[int, NDArray[np.float64]] = {}
        self._width_s = -1.0
        words = {problem.first_word, problem.last_word}
        for table in problem.tables:
            words |= {w for kind in table for o in kind for w in (o.input_word, o.output_word)}
        self._words = tuple(sorted(words))
        self._sends: dict[int, NDArray[np.float64]] = {}
        # What does not depend on how much memory there is.
        self._compositions: dict[int, Compositions] = {} if like is None else like._compositions
        self._paths: dict[tuple[int, int], SegmentPaths] = {} if like is None else like._paths

    def segments(self, stage: int) -> Segments:
        """The segments of a stage; stages with the same table, limit and micro-batches in flight share
        them."""
        key = (*self._group(stage), self._problem.in_flight[stage])
        if key not in self._segments:
            table, in_flight = key[0], key[2]
            if table not in self._compositions:
                self._compositions[table] = Compositions(self._problem, stage, self._words)
            if (table, in_flight) not in self._paths:
                self._paths[table, in_flight] = SegmentPaths(
                    self._compositions[table], self._problem.table(stage), in_flight, self._words
                )
            self._segments[key] = Segments(self._paths[table, in_flight], self._problem.limit(stage))
        return self._segments[key]

    def _group(self, stage: int) -> tuple[int, int]:
        """Stages of one group differ only in how many micro-batches they hold."""
        table = self._problem.table_of_stage[stage] if self._problem.table_of_stage else 0
        return table, self._problem.limit(stage)

    @property
    def truncated(self) -> bool:
        """Whether a Pareto front was cut short, so that the result may miss the optimum."""
        return any(segments.truncated for segments in self._segments.values())

    @property
    def limited(self) -> bool:
        """Whether memory forbade the quickest options of a segment that was looked at."""
        return any(segments.limited for segments in self._segments.values())

    def least_total_s(self) -> float:
        """Least sum of the stages' times within memory, without hand-over; of a problem that was solved."""
        return self.least_times_s()[0]

    def least_times_s(self) -> tuple[float, float, float]:
        """Of cuts without hand-over within memory: least sum, least slowest stage; and how slow a stage of
        the cuts looked at may be. Of a problem that was solved."""
        costs, self._costs = self._costs, self._bare
        try:
            finite = [c[np.isfinite(c)] for c in {id(c): c for c in self._costs.values()}.values()]
            bounds = np.unique(np.concatenate(finite))
            whole = self.shortest_path(float(bounds[-1]))
            assert whole is not None
            low, high = 0, int(np.searchsorted(bounds, whole.slowest_s))
            while low < high:
                middle = (low + high) // 2
                found = self.shortest_path(float(bounds[middle]))
                low, high = (low, middle) if found is not None else (middle + 1, high)
            return whole.total_s, float(bounds[high]), self._width_s
        finally:
            self._costs = costs

    def solve(self) -> ChainSolution | None:
        """The optimum, or None where no cut fits into memory."""
        if self._problem.num_stages > self._size:
            return None
        floor_s = self._slowest_floor_s()
        best: _Cut | None = None
        for factor in _WIDENINGS:
            self.widen(floor_s * factor)
            best = self.shortest_path(self._width_s)
            if best is not None:
                break
        if best is None:
            return None
        m = self._problem.num_micro_batches
        quickest_s = self._quickest_total_s()
        worth_s = (best.objective_s(m) - quickest_s) / (m - 1) if m > 1 else float("inf")
        self.widen(max(worth_s, self._width_s))
        solution = self._solution(self.sweep(best))
        return self._proved(solution) if self.truncated and self._proof_s else solution

    def _proved(self, solution: ChainSolution) -> ChainSolution:
        """The better of the solution and the ILP's, with the best bound known."""
        exact = solve_chain_ilp(self._problem, self._proof_s)
        loose = ChainSolver(replace(self._problem, limit_bytes=_NO_LIMIT)).solve()
        bounds = [known.bound_s for known in (exact, loose) if known is not None]
        if exact is not None and exact.objective_s < solution.objective_s:
            solution = exact
        return replace(solution, bound_s=min(max(bounds), solution.objective_s))

    def widen(self, width_s: float) -> None:
        """Costs every segment that may be at most this slow."""
        if width_s <= self._width_s:
            return
        self._width_s = width_s
        self._costs, self._bare = {}, {}
        last = self._problem.num_stages - 1
        # What fits with most micro-batches in flight fits with fewer.
        loose: dict[object, NDArray[np.float64]] = {}
        by_flight: dict[object, NDArray[np.float64]] = {}
        for stage in sorted(range(last + 1), key=lambda s: -self._problem.in_flight[s]):
            group, flight = self._group(stage), self._problem.in_flight[stage]
            pinned = self._problem.first_blocks is not None or bool(self._problem.sizes)
            # The first stage begins the chain and the last one ends it; those between may lie anywhere.
            place = group, stage == 0, stage == last
            costs = None if pinned else loose.get(place, by_flight.get((place, flight)))
            if costs is None:
                costs = by_flight[place, flight] = self._stage_costs(stage)
                if not self.segments(stage).limited:
                    loose[place] = costs
            self._bare[stage] = np.where(costs <= width_s, costs, np.inf)
            if stage < last:
                costs = self._with_send(costs, stage)
            self._costs[stage] = np.where(costs <= width_s, costs, np.inf)

    def shortest_path(self, slowest_s: float) -> _Cut | None:
        """The cut of least total time in which no stage is slower than the bound."""
        distance = np.full((self._size + 1, len(self._words)), np.inf)
        distance[0, self._words.index(self._problem.first_word)] = 0.0
        history = []
        for stage in range(self._problem.num_stages):
            history.append(distance)
            costs = self._costs[stage]
            reached = np.full_like(distance, np.inf)
            for length in range(1, costs.shape[1] + 1):
                costed = costs[: self._size + 1 - length, length - 1]
                allowed = np.where(costed <= slowest_s, costed, np.inf)
                through = (distance[: self._size + 1 - length, :, None] + allowed).min(axis=1)
                np.minimum(reached[length:], through, out=reached[length:])
            distance = reached
        target = self._words.index(self._problem.last_word)
        if not np.isfinite(distance[self._size, target]):
            return None
        return self._backtrack(history, float(distance[self._size, target]), target, slowest_s)

    def sweep(self, best: _Cut) -> _Cut:
        """The best cut over all bounds on the slowest stage."""
        m = self._problem.num_micro_batches
        finite = [costs[np.isfinite(costs)] for costs in self._costs.values()]
        bounds = np.unique(np.concatenate(finite))
        top = self.shortest_path(float(bounds[-1]))
        assert top is not None
        best = min(best, top, key=lambda cut: cut.objective_s(m))
        intervals = [(0, len(bounds) - 1, top)]
        while intervals:
            low, high, cut = intervals.pop()
            high = min(high, int(np.searchsorted(bounds, cut.slowest_s, side="left")) - 1)
            if low > high:
                continue
            tolerance = _RELATIVE_TOLERANCE * best.objective_s(m)
            if cut.total_s + (m - 1) * float(bounds[low]) >= best.objective_s(m) - tolerance:
                continue
            middle = (low + high) // 2
            found = self.shortest_path(float(bounds[middle]))
            intervals.append((middle + 1, high, cut))
            if found is not None:
                if found.objective_s(m) < best.objective_s(m) - tolerance:
                    best = found
                intervals.append((low, middle, found))
        return best

    def _stage_costs(self, stage: int) -> NDArray[np.float64]:
        """Seconds by (first block, length - 1, input word, output word), without hand-over; infinite where
        not allowed."""
        segments, extra_s = self.segments(stage), self._problem.extra_s
        allowed = self._allowed_spans(stage)
        starts = np.flatnonzero(allowed.any(axis=1)).tolist()
        numbers, least_s = self._compositions[self._group(stage)[0]].spans(starts, self._width_s)
        allowed &= np.logical_and.accumulate(least_s <= self._width_s, axis=1)
        longest = max(int(np.flatnonzero(allowed.any(axis=0))[-1]) + 1 if allowed.any() else 1, 1)
        costs = np.full((self._size, longest, len(self._words), len(self._words)), np.inf)
        compositions, examples, inverse = np.unique(numbers[allowed], return_index=True, return_inverse=True)
        firsts, lengths = np.nonzero(allowed)
        known = []
        for composition, example in zip(compositions, examples, strict=True):
            # Segments of one composition hold the same kinds and the same tied parameters.
            start, end = int(firsts[example]), int(firsts[example] + lengths[example] + 1)
            added_s = 0.0 if extra_s is None else extra_s(stage, start, end)
            best = segments.best(int(composition))
            known.append(
                added_s + np.array([[np.inf if c is None else c.seconds for c in row] for row in best])
            )
        if known:
            costs[firsts, lengths] = np.stack(known)[inverse]
        return costs

    def _allowed_spans(self, stage: int) -> NDArray[np.bool_]:
        """Which segments a stage may hold, by (first block, length - 1)."""
        last, firsts, size = self._problem.num_stages - 1, self._problem.first_blocks, self._size
        starts, lengths = np.arange(size)[:, None], np.arange(1, size + 1)[None, :]
        only_start = firsts[stage] if firsts else 0 if stage == 0 else None
        only_end = size if stage == last else firsts[stage + 1] if firsts else None
        allowed = starts + lengths <= size
        if only_start is not None:
            allowed &= starts == only_start
        if only_end is not None:
            allowed &= starts + lengths == only_end
        held = [self._problem.may_hold(stage, length) for length in range(1, size + 1)]
        return np.asarray(allowed & np.array(held)[None, :])

    def _with_send(self, costs: NDArray[np.float64], stage: int) -> NDArray[np.float64]:
        """The same with the hand-over at the end."""
        table = self._problem.table_of_stage[stage] if self._problem.table_of_stage else 0
        if table not in self._sends:
            sends = np.full((self._size, len(self._words)), np.inf)
            for block in range(self._size):
                carry_s = self._problem.carry_s[block] if self._problem.carry_s else 0.0
                for option in self._problem.options(stage, block):
                    sends[block, self._words.index(option.output_word)] = carry_s + option.send_s
            self._sends[table] = sends
        longest = costs.shape[1]
        ends = np.minimum(np.arange(self._size)[:, None] + np.arange(longest)[None, :], self._size - 1)
        return np.asarray(costs + self._sends[table][ends][:, :, None, :])

    def _slowest_floor_s(self) -> float:
        """No cut has a slowest stage quicker than this."""
        widest_s = max(
            min(min((o.seconds for o in table[kind]), default=float("inf")) for table in self._problem.tables)
            - sum(shared.seconds for shared in self._problem.shared if block in shared.blocks)
            for block, kind in enumerate(self._problem.blocks)
        )
        return max(widest_s, self._quickest_total_s() / self._problem.num_stages)

    def _quickest_total_s(self) -> float:
        """No cut takes less than this in all."""
        total_s = 0.0
        for kind in self._problem.blocks:
            total_s += min(
                min((o.seconds for o in table[kind]), default=0.0) for table in self._problem.tables
            )
        repeats_s = sum((len(shared.blocks) - 1) * shared.seconds for shared in self._problem.shared)
        return max(total_s - repeats_s, 0.0)

    def _backtrack(
        self, history: list[NDArray[np.float64]], total_s: float, target: int, slowest_s: float
    ) -> _Cut:
        end, reached = self._size, total_s
        first_blocks: list[int] = []
        words: list[tuple[int, int]] = []
        slowest = 0.0
        for stage in reversed(range(self._problem.num_stages)):
            costs, distance = self._costs[stage], history[stage]
            lengths = np.arange(1, min(costs.shape[1], end) + 1)
            arriving = costs[end - lengths, lengths - 1, :, target]
            through = np.where(arriving <= slowest_s, distance[end - lengths] + arriving, np.inf)
            at, source = divmod(int(np.argmin(through)), len(self._words))
            assert through[at, source] <= reached
            slowest = max(slowest, float(arriving[at, source]))
            end, reached = end - int(lengths[at]), float(distance[end - lengths[at], source])
            first_blocks.append(end)
            words.append((source, target))
            target = source
        return _Cut(total_s, slowest, tuple(reversed(first_blocks)), tuple(reversed(words)))

    def _solution(self, cut: _Cut) -> ChainSolution:
        options: list[int] = []
        ends = [*cut.first_blocks[1:], self._size]
        for stage, (first, end) in enumerate(zip(cut.first_blocks, ends, strict=True)):
            segments, composition = self.segments(stage), None
            for block in range(first, end):
                composition = segments.extend(composition, block)
            assert composition is not None
            options.extend(self._tidied(stage, first, segments.options(composition, *cut.words[stage])))
        loads = evaluate_chain(self._problem, cut.first_blocks, options)
        assert loads is not None
        objective = objective_s(self._problem, [load.seconds for load in loads])
        return ChainSolution(cut.first_blocks, tuple(options), loads, objective, objective)

    def _tidied(self, stage: int, first: int, options: Sequence[int]) -> list[int]:
        """The same options with equal ones side by side, where blocks in a row may trade theirs."""
        tied = {block for shared in self._problem.shared for block in shared.blocks}
        found: list[int] = []
        for key, group in groupby(
            enumerate(options, first), key=lambda item: self._tradable(stage, item[0], item[1], tied)
        ):
            own = [option for _, option in group]
            found.extend(sorted(own) if key is not None else own)
        return found

    def _tradable(self, stage: int, block: int, option: int, tied: set[int]) -> tuple[int, str] | None:
        chosen = self._problem.options(stage, block)[option]
        if block in tied or chosen.input_word != chosen.output_word:
            return None
        return self._problem.blocks[block], chosen.input_word
