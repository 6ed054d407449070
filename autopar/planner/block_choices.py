"""The ways of running one block: the ILP's optimum for every boundary and price of memory, lowered and cost.

What the ILP decides is written down as parameter placements; the deterministic propagation then chooses the
operators' rules as it will when the plan is run. Where that costs more than the ILP's choice, operators are
overridden, first to last, until it does not: so what is costed is what runs, and plans stay short.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from autopar.capture.model_graph import Block, InputKind, ModelGraph
from autopar.cost.blocks import Readings, block_choice, sharding_signature
from autopar.cost.choice import BlockChoice
from autopar.cost.operator_traffic import COPY_IF_NEEDED
from autopar.cost.operators import node_seconds, operator_name
from autopar.errors import UsageError
from autopar.hardware.cluster import Cluster
from autopar.hardware.device import Device
from autopar.plan.decisions import Recompute
from autopar.planner.operator_table import OperatorTable, strategies_of
from autopar.sharding.block_facts import BlockFacts
from autopar.sharding.boundary import block_boundary
from autopar.sharding.gradients import nodes_with_gradient
from autopar.sharding.placement import Placement
from autopar.sharding.propagation import BlockSharding, propagate
from autopar.solve.operator_problem import Price, assignment_cost
from autopar.solve.operators import OperatorSolution, OperatorSolver

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

_WORTH_AN_OVERRIDE = 1e-3


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


@dataclass(frozen=True, slots=True)
class Workbench:
    """What costing any block needs.

    Attributes:
        readings: cache of what lowered blocks cost.
        frozen: canonical names of parameters without gradient.
        tensor_stride: distance in ranks between neighbours on the tensor axis.
    """

    cluster: Cluster
    readings: Readings
    frozen: frozenset[str]
    tensor_stride: int = 1


def whole_choices(
    graph: ModelGraph, block: Block, recompute: Sequence[Recompute], bench: Workbench
) -> tuple[BlockChoice, ...]:
    """The ways of running a block on a tensor axis of one rank."""
    sharding = propagate(block, 1, {}, {}, ())
    return _undominated(
        [_choice(graph, block, sharding, ("replicate",) * 2, {}, word, bench) for word in recompute]
    )


def whole_seconds(block: Block, device: Device) -> float:
    """Least seconds of a block on one rank, forward and backward: its operators, as if nothing that may lie
    right already were copied.
    """
    if measured := device.blocks.get(block.class_key):
        return measured.forward_s + measured.backward_s
    gradients = nodes_with_gradient(block)
    costs = [
        node_seconds(node, gradients, device)
        for node in block.graph.nodes
        if node.op == "call_function" and operator_name(node.target) not in COPY_IF_NEEDED
    ]
    return sum(cost.forward_s + cost.backward_s for cost in costs)


def sharded_choices(
    graph: ModelGraph,
    block: Block,
    solver: TableSolver,
    degree: int,
    pairs: Sequence[tuple[str, str]],
    pins: BlockPins,
    bench: Workbench,
) -> tuple[BlockChoice, ...]:
    """The ways of running a block on ``degree`` ranks that no other way beats in everything.

    Args:
        pairs: input and output words to consider.
    """
    found: list[BlockChoice] = []
    seen: set[tuple[str, str, str]] = set()
    for words in pairs:
        for price, solution in solver.solutions(words, pins):
            sharding, overrides = realise(graph, block, solver, solution, price, degree, words, pins)
            key = (*words, sharding_signature(block, sharding))
            if key in seen:
                continue
            seen.add(key)
            for recompute in pins.recompute:
                found.append(_choice(graph, block, sharding, words, overrides, recompute, bench))
    return _undominated(found)


class TableSolver:
    """The operator ILP of one block, with its solutions so far."""

    def __init__(self, table: OperatorTable, cluster: Cluster, facts: BlockFacts) -> None:
        self.table = table
        self.facts = facts
        self.shardings: dict[object, BlockSharding] = {}
        self._solver = OperatorSolver(table.problem)
        self._rate = cluster.device.effective_memory_bytes_per_s
        self._solutions: dict[object, OperatorSolution | None] = {}
        self._recompute_s_per_byte: float | None = None
        self._boundaries: dict[tuple[str, str], tuple[dict[str, Placement], tuple[Placement, ...]]] = {}

    def floor_s(self, pins: BlockPins) -> float:
        """Least seconds of the block over all boundaries: the ILP with both words free, unless pinned."""
        solution = self._solve((pins.input_word, pins.output_word), pins, Price())
        return max(0.0, solution.bound_s - self.table.copies_s) if solution is not None else float("inf")

    def word_pairs(self, pins: BlockPins) -> tuple[tuple[str, str], ...]:
        """Input and output words that the pins leave."""
        return tuple(
            (source, target)
            for source in ([pins.input_word] if pins.input_word else self.table.input_words)
            for target in ([pins.output_word] if pins.output_word else self.table.output_words)
        )

    def solutions(self, words: tuple[str, str], pins: BlockPins) -> Iterator[tuple[Price, OperatorSolution]]:
        """The optimum for each price of memory."""
        for price in self.prices(pins):
            solution = self._solve(words, pins, price)
            if solution is not None:
                yield price, solution

    def prices(self, pins: BlockPins) -> tuple[Price, ...]:
        """The same for all words, so that they compare."""
        update_s_per_byte = _UPDATE_TRAFFIC / self._rate / _MICRO_BATCHES_PER_STEP
        if self._recompute_s_per_byte is None:
            quickest = self._solve((None, None), pins, Price(0.0, update_s_per_byte))
            self._recompute_s_per_byte = 0.0
            if quickest is not None:
                saved_bytes = max(quickest.cost.saved_bytes, 1.0)
                self._recompute_s_per_byte = quickest.cost.seconds / 3 / saved_bytes
        return tuple(
            Price(
                saved * self._recompute_s_per_byte,
                held * update_s_per_byte + saved * self._recompute_s_per_byte * _HELD_PER_SAVED,
            )
            for saved, held in _PRICES
        )

    def allowed(self, words: tuple[str | None, str | None], pins: BlockPins) -> dict[int, tuple[int, ...]]:
        """Strategies that words and pins leave; a word that shards nothing here is ``replicate``."""
        known = (self.table.input_words, self.table.output_words)
        effective = [w if w is None or w in k else "replicate" for w, k in zip(words, known, strict=True)]
        return self.table.allowed(effective[0], effective[1], pins.placements)

    def boundary(
        self, graph: ModelGraph, block: Block, words: tuple[str, str], degree: int
    ) -> tuple[dict[str, Placement], tuple[Placement, ...]]:
        """Placements of what the block reads and returns."""
        if words not in self._boundaries:
            self._boundaries[words] = block_boundary(graph, block, *words, degree)
        return self._boundaries[words]

    def _solve(
        self, words: tuple[str | None, str | None], pins: BlockPins, price: Price
    ) -> OperatorSolution | None:
        allowed = self.allowed(words, pins)
        key = (price, tuple(sorted(allowed.items())))
        if key not in self._solutions:
            self._solutions[key] = self._solver.solve(price, allowed)
        return self._solutions[key]


def realise(
    graph: ModelGraph,
    block: Block,
    solver: TableSolver,
    solution: OperatorSolution,
    price: Price,
    degree: int,
    words: tuple[str, str],
    pins: BlockPins,
) -> tuple[BlockSharding, dict[str, str]]:
    """The sharding that a plan can say which is as good as the ILP's, with as few overrides as it takes."""
    table, problem = solver.table, solver.table.problem
    allowed = solver.allowed(words, pins)
    outputs = [node.strategies[s].output for node, s in zip(problem.nodes, solution.strategies, strict=True)]
    placements = table.placements(outputs)
    inputs, results = solver.boundary(graph, block, words, degree)
    placed = (words, tuple(placements.items()))
    overrides = dict(pins.overrides)
    keys = {node.name: node.meta.get("operator_key") for node in block.graph.nodes}
    different: dict[str, str] | None = None
    unsayable: set[str] = set()
    while True:
        key = (placed, tuple(overrides.items()))
        if key not in solver.shardings:
            try:
                solver.shardings[key] = propagate(
                    block, degree, placements, inputs, results, overrides, solver.facts
                )
            except UsageError:
                # A rule for fused parts that no operand placed so leads to: a plan cannot ask for it.
                if different is None:
                    raise
                unsayable |= different.keys()
                overrides = {name: text for name, text in overrides.items() if name not in different}
                key = (placed, tuple(overrides.items()))
        sharding = solver.shardings[key]
        ran = strategies_of(table, sharding, allowed)
        cost = assignment_cost(problem, ran) if ran is not None else None
        if cost is not None and cost.priced_s(price) <= solution.objective_s * (1 + _WORTH_AN_OVERRIDE):
            return sharding, overrides
        different = _first_difference(table, solution, sharding, keys, {*overrides, *unsayable})
        if different is None:
            return sharding, overrides
        overrides = overrides | different


def _first_difference(
    table: OperatorTable,
    solution: OperatorSolution,
    sharding: BlockSharding,
    keys: Mapping[str, str | None],
    settled: Collection[str],
) -> dict[str, str] | None:
    for index, rules in table.rules.items():
        name = table.names[index]
        wanted, key = str(rules[solution.strategies[index]]), keys[name]
        is_free = key is not None and key not in settled and index not in table.elements
        if is_free and str(sharding.rules[name]) != wanted:
            assert key is not None
            return {key: wanted}
    return None


def _choice(
    graph: ModelGraph,
    block: Block,
    sharding: BlockSharding,
    words: tuple[str, str],
    overrides: Mapping[str, str],
    recompute: Recompute,
    bench: Workbench,
) -> BlockChoice:
    return block_choice(
        block,
        sharding,
        recompute,
        bench.cluster,
        graph.micro_batch,
        input_word=words[0],
        output_word=words[1],
        overrides=overrides,
        frozen=bench.frozen,
        readings=bench.readings,
        tensor_stride=bench.tensor_stride,
    )


def _undominated(found: Sequence[BlockChoice]) -> tuple[BlockChoice, ...]:
    """The choices that no other beats in everything; of equal ones the first."""
    kept: list[BlockChoice] = []
    for choice in found:
        if not any(_dominates(other, choice) for other in kept):
            kept = [other for other in kept if not _dominates(choice, other)]
            kept.append(choice)
    return tuple(kept)


def _dominates(better: BlockChoice, worse: BlockChoice) -> bool:
    """Whether one choice is at least as good in everything."""
    if (better.input_word, better.output_word) != (worse.input_word, worse.output_word):
        return False
    return all(a <= b for a, b in zip(_measures(better), _measures(worse), strict=True))


def _measures(choice: BlockChoice) -> tuple[float, ...]:
    return (
        choice.forward_s,
        choice.backward_s,
        float(choice.saved_bytes),
        float(choice.transient_bytes),
        float(sum(share.num_elements for share in choice.parameters)),
    )


def operator_keys(block: Block) -> tuple[str, ...]:
    """Keys of the calls of a block, in order."""
    return tuple(
        node.meta["operator_key"]
        for node in block.graph.nodes
        if node.op == "call_function" and "operator_key" in node.meta
    )


def parameter_names(block: Block) -> tuple[str, ...]:
    """Canonical names of the parameters of a block, in placeholder order."""
    return tuple(item.source for item in block.inputs if item.kind is InputKind.PARAMETER)
