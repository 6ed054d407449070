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

from autopar.solve.memory_front import EMPTY, MemoryFront, one_block_more
from autopar.solve.segment_paths import SegmentPaths


@dataclass(frozen=True, slots=True)
class SegmentCost:
    """The optimum of a segment for a pair of words, and what it takes to tell its options."""

    seconds: float
    threshold_bytes: int | None


class Segments:
    """Segments of a chain for one table, one number of micro-batches in flight and one limit.

    Args:
        paths: through them.
        limit_bytes: memory of the stage.

    Attributes:
        words: placements that may flow, by index.
        truncated: whether a Pareto front was cut short.
        limited: whether memory forbade the quickest options of a segment.
    """

    def __init__(self, paths: SegmentPaths, limit_bytes: int) -> None:
        self._paths, self._compositions = paths, paths.compositions
        self._limit_bytes = limit_bytes
        self.words = paths.words
        self._indices = range(len(paths.words))
        self._fronts: dict[tuple[int, int], list[list[MemoryFront | None]]] = {}
        self._best: dict[int, list[list[SegmentCost | None]]] = {}
        self.truncated = False
        self.limited = False

    def extend(self, composition: int | None, block: int) -> int:
        """The segment that has one more block at its end (None: the empty one)."""
        return self._compositions.extend(composition, block)

    def best(self, composition: int) -> list[list[SegmentCost | None]]:
        """Optimum for every (input word, output word), by index in ``words``; None where nothing fits."""
        if composition not in self._best:
            self._best[composition] = [
                [self._solve(composition, a, c) for c in self._indices] for a in self._indices
            ]
        return self._best[composition]

    def options(self, composition: int, source: int, target: int) -> tuple[int, ...]:
        """Option of every block of the segment, in the optimum."""
        best = self.best(composition)[source][target]
        assert best is not None
        path = self._paths.quickest(composition, best.threshold_bytes)[source][target]
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
        return self._paths.least_memory_bytes(composition)

    def leanest_bytes(self, composition: int) -> tuple[float, ...]:
        """Least peak bytes over all words, of the segment alone and so of all that it begins."""
        return tuple(min(row) for row in self.least_memory_bytes(composition))

    def _limit(self, composition: int) -> int:
        return self._compositions[composition].limit_bytes(self._limit_bytes)

    def _solve(self, composition: int, source: int, target: int) -> SegmentCost | None:
        path = self._paths.quickest(composition, None)[source][target]
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
            path = self._paths.quickest(composition, threshold)[source][target]
            if path is None or (best is not None and path.seconds >= best.seconds):
                break
            if path.resident_bytes + threshold <= limit:
                return SegmentCost(path.seconds, threshold)
            front = self._front(composition, threshold)[source][target]
            if front is not None and (best is None or front.seconds[-1] < best.seconds):
                best = SegmentCost(float(front.seconds[-1]), threshold)
        return best

    def _front(self, composition: int, threshold: int) -> list[list[MemoryFront | None]]:
        key = (composition, threshold)
        if key in self._fronts:
            return self._fronts[key]
        this = self._compositions[composition]
        before = self._front(this.before, threshold) if this.before is not None else None
        size = self._indices
        budget = self._limit(composition) - threshold
        fronts: list[list[MemoryFront | None]] = [[None for _ in size] for _ in size]
        for source in size:
            for target, ways in enumerate(self._paths.ways(this.kind, threshold)):
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
