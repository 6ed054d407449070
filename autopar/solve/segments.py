"""The cheapest way to run consecutive blocks as one stage, within the stage's memory: a knapsack solved
exactly.

A segment is known by its composition (which kinds, how many of each in a row), so that the many segments of a
chain of equal blocks are computed once. The quickest choice that ignores memory is tried first; only where it
does not fit is the Pareto front of (memory, seconds) carried from block to block. The largest transient of
the stage is handled by a
threshold: options above it are left out, and the threshold itself is deducted from the memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autopar.solve.chain_problem import ChainProblem, Option
from autopar.solve.memory_front import EMPTY, MemoryFront, Ways, one_block_more


@dataclass(frozen=True, slots=True)
class _Path:
    """The quickest way from one word to another, without regard to memory."""

    seconds: float
    resident_bytes: int
    transient_bytes: int
    options: _Steps | None


@dataclass(frozen=True, slots=True)
class _Steps:
    """Options of the blocks, last first, sharing tails."""

    option: int
    before: _Steps | None


@dataclass(frozen=True, slots=True)
class _Composition:
    """A segment up to its position in the chain: the one before it, and one block more.

    Attributes:
        kind: of the last block.
        groups: tied parameters that the segment holds.
        discount_bytes: deducted with the last block, since the segment already holds its tied parameter.
        transients: distinct transient bytes of the options in the segment, ascending.
        last_paired_bytes: paired overhead of the last block.
        paired_bytes: largest sum of paired overheads of neighbours.
        single_bytes: largest single overhead.
        floor_bytes: the second peak.
    """

    before: int | None
    kind: int
    groups: frozenset[int]
    discount_bytes: int
    discount_s: float
    transients: tuple[int, ...]
    last_paired_bytes: int
    paired_bytes: int
    single_bytes: int
    floor_bytes: int

    def limit_bytes(self, limit_bytes: int) -> int:
        """What is left for the options; negative where nothing fits."""
        return limit_bytes - self.paired_bytes - self.single_bytes if self.floor_bytes <= limit_bytes else -1


@dataclass(frozen=True, slots=True)
class SegmentCost:
    """The optimum of a segment for a pair of words, and what it takes to tell its options."""

    seconds: float
    threshold_bytes: int | None


class Segments:
    """Segments of a chain for one table, one number of micro-batches in flight and one limit.

    Attributes:
        words: placements that may flow, by index.
        truncated: whether a Pareto front was cut short.
        limited: whether memory forbade the quickest options of a segment.
    """

    def __init__(self, problem: ChainProblem, stage: int, words: tuple[str, ...]) -> None:
        self._problem = problem
        self._stage = stage
        self._table = problem.table(stage)
        self._in_flight = problem.in_flight[stage]
        self._limit_bytes = problem.limit(stage)
        self.words = words
        self._groups_of_block = {
            block: frozenset(g for g, shared in enumerate(problem.shared) if block in shared.blocks)
            for shared in problem.shared
            for block in shared.blocks
        }
        self._compositions: list[_Composition] = []
        self._known: dict[tuple[int | None, int, int | None], int] = {}
        self._quickest: dict[tuple[int, int | None], list[list[_Path | None]]] = {}
        self._fronts: dict[tuple[int, int], list[list[MemoryFront | None]]] = {}
        self._least_s: dict[int, float] = {}
        self._ways_of: dict[tuple[int, int], list[list[Ways]]] = {}
        self._best: dict[int, list[list[SegmentCost | None]]] = {}
        self._lean: dict[tuple[int, int], list[list[float]]] = {}
        self._least_bytes: dict[int, list[list[float]]] = {}
        self.truncated = False
        self.limited = False

    def extend(self, composition: int | None, block: int) -> int:
        """The segment that has one more block at its end (None: the empty one)."""
        kind = self._problem.blocks[block]
        groups = self._groups_of_block.get(block, frozenset())
        key = (composition, kind, block if groups else None)
        if key not in self._known:
            self._compositions.append(self._extended(composition, kind, groups))
            self._known[key] = len(self._compositions) - 1
        return self._known[key]

    def _extended(self, composition: int | None, kind: int, groups: frozenset[int]) -> _Composition:
        before = self._compositions[composition] if composition is not None else None
        held = before.groups if before else frozenset()
        repeated = [self._problem.shared[g] for g in sorted(groups & held)]
        transients = {option.transient_bytes for option in self._table[kind]}
        overhead = self._problem.overhead(self._stage, kind)
        paired = overhead.paired_bytes - sum(s.overhead.paired_bytes for s in repeated)
        single = overhead.single_bytes - sum(s.overhead.single_bytes for s in repeated)
        floor = overhead.floor_bytes - sum(s.overhead.floor_bytes for s in repeated)
        largest_pair = paired
        if before is not None:
            largest_pair += before.last_paired_bytes
            if before.before is not None:
                largest_pair = max(largest_pair, before.paired_bytes)
        return _Composition(
            composition,
            kind,
            groups | held,
            sum(shared.held_bytes for shared in repeated),
            sum(shared.seconds for shared in repeated),
            tuple(sorted(transients | set(before.transients if before else ()))),
            paired,
            largest_pair,
            max(single, before.single_bytes if before else 0),
            floor + (before.floor_bytes if before else 0),
        )

    def quickest_s(self, composition: int) -> float:
        """Least seconds over all words, without regard to memory."""
        if composition not in self._least_s:
            paths = self._paths(composition, None)
            found = (path.seconds for row in paths for path in row if path is not None)
            self._least_s[composition] = min(found, default=float("inf"))
        return self._least_s[composition]

    def best(self, composition: int) -> list[list[SegmentCost | None]]:
        """Optimum for every (input word, output word), by index in ``words``; None where nothing fits."""
        if composition not in self._best:
            size = range(len(self.words))
            self._best[composition] = [[self._solve(composition, a, c) for c in size] for a in size]
        return self._best[composition]

    def options(self, composition: int, source: int, target: int) -> tuple[int, ...]:
        """Option of every block of the segment, in the optimum."""
        best = self.best(composition)[source][target]
        assert best is not None
        path = self._paths(composition, best.threshold_bytes)[source][target]
        assert path is not None
        threshold = best.threshold_bytes
        limit = self._limit(composition)
        if threshold is None or path.resident_bytes + threshold <= limit:
            steps, reverse = path.options, []
            while steps is not None:
                reverse.append(steps.option)
                steps = steps.before
            return tuple(reversed(reverse))
        return self._trace(composition, threshold, source, target)

    def least_memory_bytes(self, composition: int) -> list[list[float]]:
        """Least peak bytes by (input word, output word); infinite where none leads to the other."""
        if composition not in self._least_bytes:
            this = self._compositions[composition]
            size = range(len(self.words))
            least = [[float("inf") for _ in size] for _ in size]
            for threshold in this.transients:
                for a, row in enumerate(self._leanest(composition, threshold)):
                    for c, resident in enumerate(row):
                        peak = resident + threshold + this.paired_bytes + this.single_bytes
                        least[a][c] = min(least[a][c], max(peak, this.floor_bytes))
            self._least_bytes[composition] = least
        return self._least_bytes[composition]

    def leanest_bytes(self, composition: int) -> tuple[float, ...]:
        """Least peak bytes over all words, of the segment alone and so of all that it begins."""
        return tuple(min(row) for row in self.least_memory_bytes(composition))

    def _limit(self, composition: int) -> int:
        return self._compositions[composition].limit_bytes(self._limit_bytes)

    def _solve(self, composition: int, source: int, target: int) -> SegmentCost | None:
        path = self._paths(composition, None)[source][target]
        if path is None:
            return None
        limit = self._limit(composition)
        if path.resident_bytes + path.transient_bytes <= limit:
            return SegmentCost(path.seconds, None)
        self.limited = True
        best: SegmentCost | None = None
        for threshold in reversed(self._compositions[composition].transients):
            if threshold > limit:
                continue
            path = self._paths(composition, threshold)[source][target]
            if path is None or (best is not None and path.seconds >= best.seconds):
                break
            if path.resident_bytes + threshold <= limit:
                return SegmentCost(path.seconds, threshold)
            front = self._front(composition, threshold)[source][target]
            if front is not None and (best is None or front.seconds[-1] < best.seconds):
                best = SegmentCost(float(front.seconds[-1]), threshold)
        return best

    def _allowed(self, kind: int, threshold: int | None) -> list[tuple[int, Option]]:
        return [
            (index, option)
            for index, option in enumerate(self._table[kind])
            if threshold is None or option.transient_bytes <= threshold
        ]

    def _resident(self, option: Option) -> int:
        return option.saved_bytes * self._in_flight + option.held_bytes

    def _paths(self, composition: int, threshold: int | None) -> list[list[_Path | None]]:
        key = (composition, threshold)
        if key in self._quickest:
            return self._quickest[key]
        this = self._compositions[composition]
        before = self._paths(this.before, threshold) if this.before is not None else self._empty_paths()
        size = len(self.words)
        paths: list[list[_Path | None]] = [[None] * size for _ in range(size)]
        for index, option in self._allowed(this.kind, threshold):
            middle, target = self.words.index(option.input_word), self.words.index(option.output_word)
            for source in range(size):
                prefix = before[source][middle]
                if prefix is None:
                    continue
                path = _Path(
                    prefix.seconds + option.seconds - this.discount_s,
                    prefix.resident_bytes + self._resident(option) - this.discount_bytes,
                    max(prefix.transient_bytes, option.transient_bytes),
                    _Steps(index, prefix.options),
                )
                known = paths[source][target]
                if known is None or (path.seconds, path.resident_bytes) < (
                    known.seconds,
                    known.resident_bytes,
                ):
                    paths[source][target] = path
        self._quickest[key] = paths
        return paths

    def _empty_paths(self) -> list[list[_Path | None]]:
        size = range(len(self.words))
        return [[_Path(0.0, 0, 0, None) if a == c else None for c in size] for a in size]

    def _leanest(self, composition: int, threshold: int) -> list[list[float]]:
        """Least resident bytes by words, of options with at most so many transient bytes."""
        key = (composition, threshold)
        if key in self._lean:
            return self._lean[key]
        this = self._compositions[composition]
        size = range(len(self.words))
        if this.before is None:
            before = [[0.0 if a == c else float("inf") for c in size] for a in size]
        else:
            before = self._leanest(this.before, threshold)
        least = [[float("inf") for _ in size] for _ in size]
        for _, option in self._allowed(this.kind, threshold):
            middle, target = self.words.index(option.input_word), self.words.index(option.output_word)
            own = self._resident(option) - this.discount_bytes
            for a in size:
                least[a][target] = min(least[a][target], before[a][middle] + own)
        self._lean[key] = least
        return least

    def _front(self, composition: int, threshold: int) -> list[list[MemoryFront | None]]:
        key = (composition, threshold)
        if key in self._fronts:
            return self._fronts[key]
        this = self._compositions[composition]
        before = self._front(this.before, threshold) if this.before is not None else None
        size = range(len(self.words))
        budget = self._limit(composition) - threshold
        fronts: list[list[MemoryFront | None]] = [[None for _ in size] for _ in size]
        for source in size:
            for target, ways in enumerate(self._ways(this.kind, threshold)):
                parts = []
                for way in ways:
                    if before is None:
                        prefix = EMPTY if source == way.word else None
                    else:
                        prefix = before[source][way.word]
                    if prefix is not None:
                        parts.append((prefix, way))
                if parts:
                    front, whole = one_block_more(parts, this.discount_bytes, this.discount_s, budget)
                    fronts[source][target] = front
                    self.truncated |= not whole
        self._fronts[key] = fronts
        return fronts

    def _ways(self, kind: int, threshold: int) -> list[list[Ways]]:
        """By output word: the allowed options of a kind, together where the input word is the same."""
        key = kind, threshold
        if key not in self._ways_of:
            grouped: list[dict[int, list[tuple[int, Option]]]] = [{} for _ in self.words]
            for index, option in self._allowed(kind, threshold):
                by_input = grouped[self.words.index(option.output_word)]
                by_input.setdefault(self.words.index(option.input_word), []).append((index, option))
            self._ways_of[key] = [
                [
                    Ways(
                        word,
                        np.array([[self._resident(option)] for _, option in own], np.int64),
                        np.array([[option.seconds] for _, option in own]),
                        np.array([index for index, _ in own], np.int32),
                    )
                    for word, own in by_input.items()
                ]
                for by_input in grouped
            ]
        return self._ways_of[key]

    def _trace(self, composition: int, threshold: int, source: int, target: int) -> tuple[int, ...]:
        reverse: list[int] = []
        at: int | None = composition
        label = -1
        while at is not None:
            front = self._front(at, threshold)[source][target]
            assert front is not None
            reverse.append(int(front.option[label]))
            target, label = int(front.word[label]), int(front.label[label])
            at = self._compositions[at].before
        return tuple(reversed(reverse))
