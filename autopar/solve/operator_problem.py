"""The table that the operator ILP solves: a block as values, strategies and conversions. No torch, no solver.

Every node computes one value. A strategy of a node says which placement it wants of each operand, which
placement its value has, what it costs and what it keeps for the backward pass. Where the placement that an
operand has is not the placement that is wanted, a conversion is paid; consumers that want the same share
one conversion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demand:
    """What a strategy wants of one operand.

    Attributes:
        placement: as written in a plan, e.g. ``shard(1)``.
        gradient_partial: the gradient that the consumer hands back is a summand, to be reduced over the axis.
    """

    placement: str
    gradient_partial: bool = False


@dataclass(frozen=True, slots=True)
class Price:
    """What a byte costs, in seconds, so that one objective trades time against memory.

    Attributes:
        saved_s_per_byte: for a byte kept from forward to backward.
        held_s_per_byte: for a byte of parameters (with gradient and optimiser state).
    """

    saved_s_per_byte: float = 0.0
    held_s_per_byte: float = 0.0


@dataclass(frozen=True, slots=True)
class Cost:
    """Time of one micro-batch (forward and backward) and memory of one rank."""

    seconds: float = 0.0
    saved_bytes: float = 0.0
    held_bytes: float = 0.0

    def priced_s(self, price: Price) -> float:
        """Seconds with the bytes at their price."""
        return (
            self.seconds + self.saved_bytes * price.saved_s_per_byte + self.held_bytes * price.held_s_per_byte
        )

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds,
            self.saved_bytes + other.saved_bytes,
            self.held_bytes + other.held_bytes,
        )


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way of running a node: what it wants of its operands, what it yields, what it costs."""

    output: str
    demands: tuple[Demand, ...]
    cost: Cost = Cost()


@dataclass(frozen=True, slots=True)
class OperatorNode:
    """A node of the block.

    Attributes:
        name: for messages.
        operands: indices of the nodes whose values it reads, one per demand, all smaller than its own.
        strategies: at least one.
        conversions: what it costs to hand the node's value, in a placement, to a consumer with a demand; a
            pair that is absent cannot be converted. A demand for the placement that the value has is free
            unless listed.
    """

    name: str
    operands: tuple[int, ...]
    strategies: tuple[Strategy, ...]
    conversions: Mapping[tuple[str, Demand], Cost]

    def conversion(self, source: str, demand: Demand) -> Cost | None:
        """Cost of the conversion, or None if there is none."""
        listed = self.conversions.get((source, demand))
        if listed is None and source == demand.placement and not demand.gradient_partial:
            return Cost()
        return listed


@dataclass(frozen=True, slots=True)
class OperatorProblem:
    """A block under one tensor degree and micro-batch. Nodes in topological order.

    Attributes:
        equal: groups of nodes that must yield the same placement (the pieces of one tied parameter).
    """

    nodes: tuple[OperatorNode, ...]
    equal: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class OperatorSolution:
    """The optimum of a block.

    Attributes:
        strategies: chosen strategy of each node.
        objective_s: what the solver minimised: time with bytes at their price.
        bound_s: proven lower bound of the objective.
        branched: whether the LP was fractional and a branch and bound was needed.
    """

    strategies: tuple[int, ...]
    objective_s: float
    bound_s: float
    branched: bool


def assignment_cost(problem: OperatorProblem, chosen: Sequence[int]) -> Cost | None:
    """Cost of a strategy per node: operators, and each conversion once; None if a conversion is impossible.

    Raises nothing and knows no solver: it is what the ILP's objective is checked against.
    """
    for group in problem.equal:
        if len({problem.nodes[n].strategies[chosen[n]].output for n in group}) > 1:
            return None
    total = Cost()
    wanted: dict[tuple[int, Demand], None] = {}
    for node, strategy_index in zip(problem.nodes, chosen, strict=True):
        strategy = node.strategies[strategy_index]
        total = total + strategy.cost
        for operand, demand in zip(node.operands, strategy.demands, strict=True):
            wanted[operand, demand] = None
    for operand, demand in wanted:
        value = problem.nodes[operand]
        conversion = value.conversion(value.strategies[chosen[operand]].output, demand)
        if conversion is None:
            return None
        total = total + conversion
    return total
