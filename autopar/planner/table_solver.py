"""The optimum of a block's table for every boundary and price of memory, with what the constraints fix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autopar.hardware.cluster import Cluster
from autopar.plan.decisions import Recompute
from autopar.planner.operator_table import OperatorTable
from autopar.sharding.placement import Placement
from autopar.solve.elimination import Elimination, Optima
from autopar.solve.operator_problem import OperatorSolution, Price, assignment_cost
from autopar.solve.operators import OperatorSolver

# A byte saved is priced against the forward time that recomputing it would take: a third of the block's time.
# A byte held is priced at its update, and at several times that: few micro-batches may share the update,
# and gradients may have to cross a slow network.
_PRICES = ((0.0, 1.0), (0.0, 2.5), (0.0, 6.0), (0.3, 1.0), (3.0, 1.0))
NUM_PRICES = len(_PRICES)
"""Prices of memory under which every block is solved."""
# A byte held competes with the saved bytes of some micro-batches in flight.
_HELD_PER_SAVED = 0.25
# The update moves about 5 bytes per byte held once a step; this many micro-batches share it.
_UPDATE_TRAFFIC, _MICRO_BATCHES_PER_STEP = 5, 8

# Placements of large parameters that cost so little more than the best are near it, so many of each price;
# large is what holds no less than such a part of the largest; so many joint placements are looked at.
_NEAR, _MOST_NEAR, _LARGE, _MOST_TOGETHER = 0.03, 6, 64, 2_500

Words = tuple[str, str]


@dataclass(frozen=True, slots=True)
class BlockPins:
    """What the constraints fix in one block.

    Attributes:
        placements: of parameters, by canonical name.
        input_word: None where free.
        output_word: likewise.
        recompute: the allowed ones.
        overrides: rule text by operator key.
    """

    placements: Mapping[str, Placement]
    input_word: str | None
    output_word: str | None
    recompute: tuple[Recompute, ...]
    overrides: Mapping[str, str]


class TableSolver:
    """The table of one block, with its solutions so far."""

    def __init__(self, table: OperatorTable, cluster: Cluster) -> None:
        self.table = table
        self._elimination = Elimination(table.problem)
        self._programme = OperatorSolver(table.problem)
        self._rate = cluster.device.effective_memory_bytes_per_s
        self._optima: dict[object, Optima | None] = {}
        self._found: dict[object, tuple[OperatorSolution | None, ...]] = {}
        self._programmes: dict[object, OperatorSolution | None] = {}
        self._recompute_s_per_byte: float | None = None

    def word_pairs(self, pins: BlockPins) -> tuple[Words, ...]:
        """Input and output words that the pins leave."""
        return tuple(
            (source, target)
            for source in ([pins.input_word] if pins.input_word else self.table.input_words)
            for target in ([pins.output_word] if pins.output_word else self.table.output_words)
        )

    def objectives_s(self, words: Words, pins: BlockPins) -> list[float]:
        """What the optimum costs at each price of memory; empty where nothing goes together."""
        prices, at = self.prices(pins), self.table.word_indices(words)
        optima = self._eliminated(pins, prices)
        if optima is None:
            return [solution.objective_s for _, solution in self.solutions(words, pins)]
        found = [optima.least_s((index, *self._kept(at))) for index in range(len(prices))]
        return [least_s for least_s in found if least_s < float("inf")]

    def solutions(self, words: Words, pins: BlockPins) -> list[tuple[Price, OperatorSolution]]:
        """The optimum for each price of memory; none where nothing goes together."""
        prices = self.prices(pins)
        found = zip(prices, self._solve(words, pins, prices), strict=True)
        return [(price, solution) for price, solution in found if solution is not None]

    def near_optima(self, words: Words, pins: BlockPins) -> list[tuple[Price, OperatorSolution]]:
        """For each price of memory, the best of every placement of the larger parameters that is hardly worse
        than the optimum: what the table says of a block is not quite what its program takes.
        """
        free, prices = self.table.allowed(parameters=pins.placements), self.prices(pins)
        boundary = self.table.word_indices(words)
        kept: tuple[tuple[int, ...], ...] = (self.table.inputs,) if self.table.inputs else ()
        kept = (*kept, (len(self.table.names) - 1,), *((node,) for node in self._large(free)))
        optima = self._elimination.optima(prices, free, kept)
        if optima is None:
            return []
        found = []
        for index, price in enumerate(prices):
            at = (index, *self._kept(boundary))
            for way in _near(optima.objective_s[at]):
                solution = optima.best((*at, *way))
                assert solution is not None
                found.append((price, solution))
        return found

    def _large(self, free: Mapping[int, Sequence[int]]) -> list[int]:
        """Nodes of parameters that may be placed in several ways, those that hold most, as many as go
        together."""
        nodes = self.table.problem.nodes
        open_ = [node for node, _ in self.table.parameters.values() if len(free[node]) > 1]
        held = {node: max(s.cost.held_bytes for s in nodes[node].strategies) for node in open_}
        found, ways = [], 1
        for node in sorted(open_, key=lambda node: (-held[node], node)):
            ways *= len(free[node])
            if ways > _MOST_TOGETHER or held[node] * _LARGE < max(held.values()):
                break
            found.append(node)
        return sorted(found)

    def prices(self, pins: BlockPins) -> tuple[Price, ...]:
        """The same for all words, so that they compare."""
        update_s_per_byte = _UPDATE_TRAFFIC / self._rate / _MICRO_BATCHES_PER_STEP
        if self._recompute_s_per_byte is None:
            (quickest,) = self._solve((None, None), pins, (Price(0.0, update_s_per_byte),))
            self._recompute_s_per_byte = 0.0
            if quickest is not None:
                cost = assignment_cost(self.table.problem, quickest.strategies)
                assert cost is not None
                self._recompute_s_per_byte = cost.seconds / 3 / max(cost.saved_bytes, 1.0)
        return tuple(
            Price(
                saved * self._recompute_s_per_byte,
                held * update_s_per_byte + saved * self._recompute_s_per_byte * _HELD_PER_SAVED,
            )
            for saved, held in _PRICES
        )

    def _indices(self, words: tuple[str | None, str | None]) -> tuple[int | None, int | None]:
        """Words as strategies, where they are not free."""
        source, target = self.table.word_indices((words[0] or "replicate", words[1] or "replicate"))
        return (None if words[0] is None else source), (None if words[1] is None else target)

    def _solve(
        self, words: tuple[str | None, str | None], pins: BlockPins, prices: tuple[Price, ...]
    ) -> tuple[OperatorSolution | None, ...]:
        """The optimum for each price; over all words where they are free."""
        fixed, optima = self._indices(words), self._eliminated(pins, prices)
        if optima is None:
            return tuple(self._programmed(fixed, pins, price) for price in prices)
        if (optima, fixed) not in self._found:
            at = self._kept(fixed)
            self._found[optima, fixed] = tuple(optima.best((i, *at)) for i in range(len(prices)))
        return self._found[optima, fixed]

    def _eliminated(self, pins: BlockPins, prices: tuple[Price, ...]) -> Optima | None:
        free = self.table.allowed(parameters=pins.placements)
        key = (prices, tuple(sorted(free.items())))
        if key not in self._optima:
            inputs, last = self.table.inputs, (len(self.table.names) - 1,)
            kept = (inputs, last) if inputs else (last,)
            exact = self._elimination.optima(prices, free, kept)
            self._optima[key] = exact or self._unshared.optima(prices, free, kept)
        return self._optima[key]

    @cached_property
    def _unshared(self) -> Elimination:
        """For blocks that are too wide to be eliminated exactly."""
        return Elimination(self.table.problem, shares=False)

    def _kept(self, words: tuple[int | None, int | None]) -> tuple[int | None, ...]:
        """Words as indices of what the elimination keeps."""
        return words if self.table.inputs else words[1:]

    def _programmed(
        self, words: tuple[int | None, int | None], pins: BlockPins, price: Price
    ) -> OperatorSolution | None:
        """The optimum by linear programming, for graphs that are too wide to be eliminated."""
        allowed = self.table.allowed(*words, pins.placements)
        if not all(allowed.values()):
            return None  # a pinned placement that this degree does not have
        key = (price, tuple(sorted(allowed.items())))
        if key not in self._programmes:
            self._programmes[key] = self._programme.solve(price, allowed)
        return self._programmes[key]


def _near(costs: NDArray[np.float64]) -> list[tuple[int, ...]]:
    """Where costs are hardly above the least, the least first."""
    least = float(costs.min())
    if not np.isfinite(least):
        return []
    ways = [tuple(int(i) for i in way) for way in np.argwhere(costs <= least * (1 + _NEAR))]
    return sorted(ways, key=lambda way: float(costs[way]))[:_MOST_NEAR]
