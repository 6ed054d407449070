"""The quickest and the leanest ways through a segment, without regard to what memory there is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autopar.solve.chain_problem import Option
from autopar.solve.compositions import Compositions
from autopar.solve.memory_front import Ways


@dataclass(frozen=True, slots=True)
class Path:
    """The quickest way from one word to another, without regard to memory."""

    seconds: float
    resident_bytes: int
    transient_bytes: int
    options: Steps | None


@dataclass(frozen=True, slots=True)
class Steps:
    """Options of the blocks, last first, sharing tails."""

    option: int
    before: Steps | None


class SegmentPaths:
    """Of the segments of a chain for one table and one number of micro-batches in flight.

    Args:
        words: placements that may flow, by index.
    """

    def __init__(
        self,
        compositions: Compositions,
        table: tuple[tuple[Option, ...], ...],
        in_flight: int,
        words: tuple[str, ...],
    ) -> None:
        self.compositions, self.words = compositions, words
        self._table, self._in_flight = table, in_flight
        self._quickest: dict[tuple[int, int | None], list[list[Path | None]]] = {}
        self._ways_of: dict[tuple[int, int], list[list[Ways]]] = {}
        self._lean: dict[tuple[int, int], list[list[float]]] = {}
        self._least_bytes: dict[int, list[list[float]]] = {}

    def least_memory_bytes(self, composition: int) -> list[list[float]]:
        """Least peak bytes by (input word, output word); infinite where none leads to the other."""
        if composition not in self._least_bytes:
            this = self.compositions[composition]
            size = range(len(self.words))
            least = [[float("inf") for _ in size] for _ in size]
            for threshold in this.transients:
                for a, row in enumerate(self._leanest(composition, threshold)):
                    for c, resident in enumerate(row):
                        peak = resident + threshold + this.paired_bytes + this.single_bytes
                        least[a][c] = min(least[a][c], max(peak, this.floor_bytes))
            self._least_bytes[composition] = least
        return self._least_bytes[composition]

    def _allowed(self, kind: int, threshold: int | None) -> list[tuple[int, Option]]:
        return [
            (index, option)
            for index, option in enumerate(self._table[kind])
            if threshold is None or option.transient_bytes <= threshold
        ]

    def _resident(self, option: Option) -> int:
        return option.saved_bytes * self._in_flight + option.held_bytes

    def quickest(self, composition: int, threshold: int | None) -> list[list[Path | None]]:
        """By (input word, output word), of options with at most so many transient bytes (None: of all)."""
        key = (composition, threshold)
        if key in self._quickest:
            return self._quickest[key]
        this = self.compositions[composition]
        before = self.quickest(this.before, threshold) if this.before is not None else self._empty_paths()
        size = len(self.words)
        paths: list[list[Path | None]] = [[None] * size for _ in range(size)]
        for index, option in self._allowed(this.kind, threshold):
            middle, target = self.words.index(option.input_word), self.words.index(option.output_word)
            for source in range(size):
                prefix = before[source][middle]
                if prefix is None:
                    continue
                path = Path(
                    prefix.seconds + option.seconds - this.discount_s,
                    prefix.resident_bytes + self._resident(option) - this.discount_bytes,
                    max(prefix.transient_bytes, option.transient_bytes),
                    Steps(index, prefix.options),
                )
                known = paths[source][target]
                if known is None or (path.seconds, path.resident_bytes) < (
                    known.seconds,
                    known.resident_bytes,
                ):
                    paths[source][target] = path
        self._quickest[key] = paths
        return paths

    def _empty_paths(self) -> list[list[Path | None]]:
        size = range(len(self.words))
        return [[Path(0.0, 0, 0, None) if a == c else None for c in size] for a in size]

    def _leanest(self, composition: int, threshold: int) -> list[list[float]]:
        """Least resident bytes by words, of options with at most so many transient bytes."""
        key = (composition, threshold)
        if key in self._lean:
            return self._lean[key]
        this = self.compositions[composition]
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

    def ways(self, kind: int, threshold: int) -> list[list[Ways]]:
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
