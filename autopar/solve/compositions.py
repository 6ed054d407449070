"""Which segments of a chain are alike: those that hold the same kinds of blocks in the same order, and the
same tied parameters. Known by number, whatever memory there is, so that all stages and limits share them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopar.solve.chain_problem import ChainProblem


@dataclass(frozen=True, slots=True)
class Composition:
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


class Compositions:
    """Of a chain for one of its tables.

    Args:
        stage: one that reads the table.
        words: placements that may flow, by index.
    """

    def __init__(self, problem: ChainProblem, stage: int, words: tuple[str, ...]) -> None:
        self._problem, self._stage, self._words = problem, stage, words
        self._table = problem.table(stage)
        self._groups_of_block = {
            block: frozenset(g for g, shared in enumerate(problem.shared) if block in shared.blocks)
            for shared in problem.shared
            for block in shared.blocks
        }
        self._compositions: list[Composition] = []
        self._known: dict[tuple[int | None, int, int | None], int] = {}
        self._quickest: list[NDArray[np.float64]] = []
        size = len(problem.blocks)
        self._known_lengths = [0] * size
        self._numbers = np.zeros((size, size), np.int64)
        self._least_s = np.full((size, size), np.inf)

    def __getitem__(self, number: int) -> Composition:
        return self._compositions[number]

    def extend(self, composition: int | None, block: int) -> int:
        """The segment that has one more block at its end (None: the empty one)."""
        kind = self._problem.blocks[block]
        groups = self._groups_of_block.get(block, frozenset())
        key = (composition, kind, block if groups else None)
        if key not in self._known:
            self._compositions.append(self._extended(composition, kind, groups))
            self._quickest.append(self._least_seconds(self._compositions[-1]))
            self._known[key] = len(self._compositions) - 1
        return self._known[key]

    def spans(self, starts: Iterable[int], width_s: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Of segments, by (first block, length - 1): their numbers, and their least seconds over all words,
        without regard to memory; infinite beyond the end, and beyond the first of a start that is too slow.

        Args:
            starts: first blocks that are asked for.
            width_s: slower ones are of no interest.
        """
        size = len(self._problem.blocks)
        for start in starts:
            length = self._known_lengths[start]
            while start + length < size:
                before = int(self._numbers[start, length - 1]) if length else None
                if before is not None and self._least_s[start, length - 1] > width_s:
                    break
                number = self.extend(before, start + length)
                self._numbers[start, length] = number
                self._least_s[start, length] = self._quickest[number].min()
                length += 1
            self._known_lengths[start] = length
        return self._numbers, self._least_s

    def _least_seconds(self, this: Composition) -> NDArray[np.float64]:
        """By (input word, output word)."""
        size = len(self._words)
        if this.before is None:
            before = np.where(np.eye(size, dtype=bool), 0.0, np.inf)
        else:
            before = self._quickest[this.before]
        own = np.full((size, size), np.inf)
        for option in self._table[this.kind]:
            at = self._words.index(option.input_word), self._words.index(option.output_word)
            own[at] = min(own[at], option.seconds)
        return np.asarray((before[:, :, None] + (own - this.discount_s)).min(axis=1))

    def _extended(self, composition: int | None, kind: int, groups: frozenset[int]) -> Composition:
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
        return Composition(
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
