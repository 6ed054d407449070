"""From the optimum of a table to a sharding that a plan can say.

What the optimum decides is written down as parameter placements; the deterministic propagation then chooses
the operators' rules as it will when the plan is run. Where that costs more than the optimum, operators are
overridden, first to last, until it does not: so what is costed is what runs, and plans stay short.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from autopar.capture.model_graph import Block, ModelGraph
from autopar.cost.blocks import sharding_signature
from autopar.errors import UsageError
from autopar.planner.operator_table import OperatorTable, strategies_of
from autopar.planner.table_solver import Words
from autopar.sharding.block_facts import BlockFacts
from autopar.sharding.boundary import block_boundary
from autopar.sharding.placement import Placement
from autopar.sharding.propagation import BlockSharding, propagate
from autopar.solve.operator_problem import Cost, OperatorSolution, Price, assignment_cost

# Of a block's time and memory at their price.
_WORTH_AN_OVERRIDE = 1e-6


@dataclass(frozen=True, slots=True)
class Realised:
    """A sharding as a plan says it.

    Attributes:
        overrides: rule text by operator key, where the propagation is overruled.
        signature: text that equal programs share.
        cost: by the table; None where the table has no strategies for it.
    """

    sharding: BlockSharding
    overrides: Mapping[str, str]
    signature: str
    cost: Cost | None


class Realiser:
    """What plans can say of one block, found so far."""

    def __init__(
        self,
        graph: ModelGraph,
        block: Block,
        degree: int,
        table: OperatorTable,
        facts: BlockFacts,
        repeated: Collection[int],
    ) -> None:
        """
        Args:
            repeated: positions of the calls that other blocks repeat: a line of ``operators`` names them in
                all of these, so that one block alone may not overrule them.
        """
        self._graph, self._block, self._degree = graph, block, degree
        self._table, self._facts = table, facts
        self._keys = {
            call.name: call.operator_key for at, call in enumerate(block.calls) if at not in repeated
        }
        self._placements: dict[tuple[int, ...], dict[str, Placement]] = {}
        self._boundaries: dict[Words, tuple[dict[str, Placement], tuple[Placement, ...]]] = {}
        self._known: dict[object, Realised] = {}

    def realise(
        self,
        solution: OperatorSolution,
        price: Price,
        words: Words,
        strategies: tuple[int, int],
        pinned: Mapping[str, str],
    ) -> Realised:
        """The sharding that is as good as the optimum, with as few overrides as it takes.

        Args:
            price: under which the solution is the optimum.
            words: that flow in and out.
            strategies: their indices in the table.
            pinned: overrides that the constraints ask for.
        """
        placements = self._placements_of(solution)
        overrides = dict(pinned)
        different: dict[str, str] | None = None
        unsayable: set[str] = set()
        while True:
            try:
                found = self._propagated(placements, words, strategies, overrides)
            except UsageError:
                # A rule for fused parts that no operand placed so leads to: a plan cannot ask for it.
                if different is None:
                    raise
                unsayable |= different.keys()
                overrides = {key: text for key, text in overrides.items() if key not in different}
                found = self._propagated(placements, words, strategies, overrides)
            enough_s = solution.objective_s * (1 + _WORTH_AN_OVERRIDE)
            if found.cost is not None and found.cost.priced_s(price) <= enough_s:
                return found
            different = self._first_difference(solution, found.sharding, {*overrides, *unsayable})
            if different is None:
                return found
            overrides |= different

    def _placements_of(self, solution: OperatorSolution) -> dict[str, Placement]:
        if solution.strategies not in self._placements:
            self._placements[solution.strategies] = self._table.placements(solution.strategies)
        return self._placements[solution.strategies]

    def _propagated(
        self,
        placements: Mapping[str, Placement],
        words: Words,
        strategies: tuple[int, int],
        overrides: Mapping[str, str],
    ) -> Realised:
        key = (words, tuple(placements.values()), tuple(overrides.items()))
        if key not in self._known:
            if words not in self._boundaries:
                self._boundaries[words] = block_boundary(self._graph, self._block, *words, self._degree)
            inputs, results = self._boundaries[words]
            sharding = propagate(
                self._block, self._degree, placements, inputs, results, overrides, self._facts
            )
            chosen = strategies_of(self._table, sharding, *strategies)
            cost = assignment_cost(self._table.problem, chosen) if chosen is not None else None
            signature = sharding_signature(self._block, sharding)
            self._known[key] = Realised(sharding, dict(overrides), signature, cost)
        return self._known[key]

    def _first_difference(
        self, solution: OperatorSolution, sharding: BlockSharding, settled: Collection[str]
    ) -> dict[str, str] | None:
        """The first operator that the propagation runs otherwise and that may be overridden, and its rule."""
        for index, rules in self._table.rules.items():
            name = self._table.names[index]
            wanted, key = rules[solution.strategies[index]], self._keys.get(name)
            is_free = key and key not in settled and index not in self._table.elements
            if is_free and sharding.rules[name] != wanted:
                assert key is not None
                return {key: str(wanted)}
        return None


def repeated_calls(graph: ModelGraph) -> tuple[frozenset[int], ...]:
    """By block, positions of the calls that it, or another block of its class, has in common with others."""
    in_blocks = Counter(key for block in graph.blocks for key in {call.operator_key for call in block.calls})
    of_class: dict[str, frozenset[int]] = {}
    for block in graph.blocks:
        own = frozenset(at for at, call in enumerate(block.calls) if in_blocks[call.operator_key] > 1)
        of_class[block.class_key] = of_class.get(block.class_key, frozenset()) | own
    return tuple(of_class[block.class_key] for block in graph.blocks)
