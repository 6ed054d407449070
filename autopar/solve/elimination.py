"""The optimum of a block by eliminating its nodes one after the other: exact, for every price and boundary.

What a block costs is a sum of small tables, each over a few nodes: what strategies cost, and what it costs to
hand a value to its consumers. Minimising over one node merges the tables that it is in into one over the
other nodes of these (Bertele and Brioschi, "Nonserial Dynamic Programming", 1972; the buckets of Dechter
1999). How large that one gets depends on the width of the graph, which is small for blocks: they are chains
with a few branches. The node that leaves the least table goes first; choices are read back in the opposite
order.

Prices are one more axis of every table, and the nodes of the boundary are not eliminated: one pass finds the
optimum for all prices and all words.

A conversion that several consumers share is paid once. Up to three consumers are in one table with the value;
for more, a node that pays or does not stands between the value and each of them. Blocks with many such values
(a recurrence that is written out) are too wide for that: there, more than three consumers may be let pay each
for itself, and what is found is a good choice, not the best.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopar.solve.operator_problem import Cost, Demand, OperatorProblem, OperatorSolution, Price

Floats = NDArray[np.float64]

_INFINITY = float("inf")
_MOST_TOGETHER = 3
# Entries of the largest table, over all prices: beyond, a linear programme is quicker.
_MOST_ENTRIES = 4_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Optima:
    """The best choices for each price and each choice of the nodes that are kept.

    Attributes:
        objective_s: (price, first kept, second kept, ...); infinite where nothing goes together.
        strategies: per node, the chosen strategy, of the same shape.
    """

    objective_s: Floats
    strategies: tuple[NDArray[np.intp], ...]

    def least_s(self, at: Sequence[int | None]) -> float:
        """The objective at a price and choices of the kept nodes; infinite where nothing goes together."""
        return float(self.objective_s[_part(at)].min())

    def best(self, at: Sequence[int | None]) -> OperatorSolution | None:
        """The optimum at a price and choices of the kept nodes.

        Args:
            at: index on every axis; None where it is free.

        Returns:
            None if nothing goes together.
        """
        part = _part(at)
        costs = self.objective_s[part]
        best = np.unravel_index(int(costs.argmin()), costs.shape)
        objective_s = float(costs[best])
        if objective_s == _INFINITY:
            return None
        chosen = tuple(int(strategies[part][best]) for strategies in self.strategies)
        return OperatorSolution(chosen, objective_s, objective_s, False)


def _part(at: Sequence[int | None]) -> tuple[slice, ...]:
    return tuple(slice(None) if index is None else slice(index, index + 1) for index in at)


class Elimination:
    """The tables of one problem; eliminated under several prices and restrictions."""

    def __init__(self, problem: OperatorProblem, *, shares: bool = True) -> None:
        """
        Args:
            shares: whether a conversion for more than three consumers is paid once, as it is in truth.
        """
        self._problem, self._shares = problem, shares
        self._sizes = [len(node.strategies) for node in problem.nodes]
        self._tables: dict[tuple[int, ...], Floats] = {}
        for index, node in enumerate(problem.nodes):
            self._add((index,), _columns(strategy.cost for strategy in node.strategies))
        self._add_conversions()
        for first, *others in problem.equal:
            for other in others:
                self._add_agreement(first, other)

    def optima(
        self,
        prices: Sequence[Price],
        allowed: Mapping[int, Sequence[int]],
        kept: Sequence[Sequence[int]] = (),
    ) -> Optima | None:
        """The best choices for all prices, and for all choices of the kept nodes.

        Args:
            prices: of memory.
            allowed: strategies by node, where not all are.
            kept: groups of nodes that are not chosen for but told about, ascending; the nodes of a group all
                take the first of what they are allowed, or all the second, ..., and do not read each other.

        Returns:
            None if the graph is too wide to be eliminated, or a node is allowed nothing.
        """
        if not all(allowed.values()):
            return None
        run = _Run(self._tables, self._sizes, prices, allowed, kept)
        return run.optima(len(self._problem.nodes))

    def _add(self, scope: tuple[int, ...], costs: Floats) -> None:
        """Adds costs over variables that are not in order yet."""
        order = sorted(range(len(scope)), key=lambda position: scope[position])
        key = tuple(scope[position] for position in order)
        costs = costs.transpose(0, *(position + 1 for position in order))
        known = self._tables.get(key)
        self._tables[key] = costs if known is None else known + costs

    def _add_agreement(self, first: int, other: int) -> None:
        labels = [[s.output for s in self._problem.nodes[node].strategies] for node in (first, other)]
        same = np.array([[a == b for b in labels[1]] for a in labels[0]])
        self._add((first, other), _seconds(np.where(same, 0.0, _INFINITY)))

    def _add_conversions(self) -> None:
        readers: dict[int, dict[Demand, dict[int, list[bool]]]] = {}
        for index, node in enumerate(self._problem.nodes):
            for position, operand in enumerate(node.operands):
                for number, strategy in enumerate(node.strategies):
                    asked = readers.setdefault(operand, {}).setdefault(strategy.demands[position], {})
                    asked.setdefault(index, [False] * len(node.strategies))[number] = True
        for value in sorted(readers):
            for demand, asked in readers[value].items():
                self._add_conversion(value, demand, asked)

    def _add_conversion(self, value: int, demand: Demand, asked: Mapping[int, Sequence[bool]]) -> None:
        """What a demand for a value costs, whichever of its consumers makes it.

        Args:
            asked: by consumer, whether each of its strategies does.
        """
        node = self._problem.nodes[value]
        found = [node.conversion(strategy.output, demand) for strategy in node.strategies]
        costs = _columns(found)
        if not costs.any():
            return
        consumers, wishes = tuple(asked), [np.array(wish) for wish in asked.values()]
        if len(consumers) <= _MOST_TOGETHER:
            wanted = np.array(False)
            for wish in wishes:
                wanted = wanted[..., None] | wish
            spread = costs.reshape(*costs.shape, *(1,) * wanted.ndim)
            self._add((value, *consumers), np.where(wanted, spread, 0.0))
            return
        if not self._shares:
            for consumer, wish in zip(consumers, wishes, strict=True):
                self._add((value, consumer), np.where(wish, costs[..., None], 0.0))
            return
        payer = len(self._sizes)
        self._sizes.append(2)
        self._add((value, payer), np.stack([np.zeros_like(costs), costs], axis=-1))
        for consumer, wish in zip(consumers, wishes, strict=True):
            unpaid = np.where(wish, _INFINITY, 0.0)
            self._add((consumer, payer), _seconds(np.stack([unpaid, np.zeros_like(unpaid)], axis=-1)))


class _Run:
    """One elimination: what is left of the tables, and how to read back what was eliminated."""

    def __init__(
        self,
        tables: Mapping[tuple[int, ...], Floats],
        sizes: Sequence[int],
        prices: Sequence[Price],
        allowed: Mapping[int, Sequence[int]],
        kept: Sequence[Sequence[int]],
    ) -> None:
        self._options = [tuple(allowed.get(index, range(size))) for index, size in enumerate(sizes)]
        self._variable = list(range(len(sizes)))  # the nodes of a kept group are one variable, its first
        for group in kept:
            for node in group:
                self._variable[node] = group[0]
        self._kept = tuple(group[0] for group in kept)
        self._weights = np.array([(1.0, p.saved_s_per_byte, p.held_s_per_byte) for p in prices])
        self._tables: dict[tuple[int, ...], Floats] = {}
        for scope, costs in tables.items():
            self._enter(scope, costs)
        self._choices: list[tuple[int, tuple[int, ...], NDArray[np.intp]]] = []

    def optima(self, num_nodes: int) -> Optima | None:
        """The optima over the first ``num_nodes`` variables; None if a table would be too large."""
        order = self._order()
        if order is None:
            return None
        for variable in order:
            self._eliminate(variable)
        shape = (len(self._weights), *(len(self._options[variable]) for variable in self._kept))
        objective_s = np.zeros(shape)
        for scope, costs in self._tables.items():
            objective_s += _over(costs, scope, self._kept)
        return Optima(objective_s, self._read_back(num_nodes, shape))

    def _enter(self, scope: tuple[int, ...], costs: Floats) -> None:
        """Priced and restricted to what is allowed; what has one strategy left is no variable any more."""
        for axis, node in enumerate(scope, start=1):
            options = self._options[node]
            if len(options) < costs.shape[axis]:
                costs = costs.take(options, axis=axis)
        free = tuple(node for node in scope if len(self._options[node]) != 1 or node in self._kept)
        sizes = [len(self._options[node]) for node in free]
        priced = (self._weights @ costs.reshape(3, -1)).reshape(len(self._weights), *sizes)
        variables = tuple(self._variable[node] for node in free)
        assert len(set(variables)) == len(variables), "a kept node reads another of its group"
        known = self._tables.get(variables)
        self._tables[variables] = priced if known is None else known + priced

    def _order(self) -> list[int] | None:
        """Variables in the order of the least table that each leaves."""
        near: dict[int, set[int]] = {}
        for scope in self._tables:
            for variable in scope:
                near.setdefault(variable, set()).update(scope)
        left = {variable: self._entries(near[variable]) for variable in near if variable not in self._kept}
        order = []
        while left:
            variable = min(left, key=lambda v: (left[v] // len(self._options[v]), v))
            if left.pop(variable) > _MOST_ENTRIES:
                return None
            order.append(variable)
            others = near.pop(variable) - {variable}
            for other in others:
                near[other] |= others
                near[other].discard(variable)
                if other in left:
                    left[other] = self._entries(near[other])
        return order

    def _entries(self, scope: Iterable[int]) -> int:
        return len(self._weights) * math.prod(len(self._options[variable]) for variable in scope)

    def _eliminate(self, variable: int) -> None:
        """Merges the tables that a variable is in, minimises over it, and notes where the minimum is."""
        merged = [scope for scope in self._tables if variable in scope]
        others = tuple(sorted({other for scope in merged for other in scope} - {variable}))
        scope = (*others, variable)
        total = sum(_over(self._tables.pop(one), one, scope) for one in merged)
        assert isinstance(total, np.ndarray)
        total = np.broadcast_to(total, (len(total), *(len(self._options[v]) for v in scope)))
        chosen = total.argmin(axis=-1)
        self._choices.append((variable, others, chosen))
        least = np.take_along_axis(total, chosen[..., None], axis=-1)[..., 0]
        known = self._tables.get(others)
        self._tables[others] = least if known is None else known + least

    def _read_back(self, num_nodes: int, shape: tuple[int, ...]) -> tuple[NDArray[np.intp], ...]:
        """Per node its strategy in every optimum, those eliminated last first."""
        axes = np.ogrid[tuple(slice(size) for size in shape)]
        found: dict[int, NDArray[np.intp]] = dict(zip(self._kept, axes[1:], strict=True))
        for variable, others, chosen in reversed(self._choices):
            found[variable] = chosen[(axes[0], *(found[other] for other in others))]
        nothing = np.zeros((1,) * len(shape), dtype=np.intp)
        return tuple(
            np.broadcast_to(
                np.array(self._options[node], dtype=np.intp)[found.get(self._variable[node], nothing)], shape
            )
            for node in range(num_nodes)
        )


def _over(costs: Floats, scope: Sequence[int], wider: Sequence[int]) -> Floats:
    """Costs with the axes of a wider scope: of length one where they do not vary."""
    own = [variable for variable in wider if variable in scope]
    if own != list(scope):
        costs = costs.transpose(0, *(1 + scope.index(variable) for variable in own))
    sizes = iter(costs.shape[1:])
    return costs.reshape(len(costs), *(next(sizes) if variable in scope else 1 for variable in wider))


def _columns(costs: Iterable[Cost | None]) -> Floats:
    """(seconds, saved bytes, held bytes) by strategy; infinite seconds where there is no cost."""
    rows = [
        (c.seconds, c.saved_bytes, c.held_bytes) if c is not None else (_INFINITY, 0.0, 0.0) for c in costs
    ]
    return np.array(rows).T


def _seconds(seconds: Floats) -> Floats:
    """As (seconds, no saved bytes, no held bytes)."""
    nothing = np.zeros_like(seconds)
    return np.stack([seconds, nothing, nothing])
