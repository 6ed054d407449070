"""Random problems of operators, and their optimum by trying everything."""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from autopar.solve.operator_problem import (
    Cost,
    Demand,
    OperatorNode,
    OperatorProblem,
    Price,
    Strategy,
)

PLACEMENTS = ("replicate", "shard(0)", "shard(1)", "partial")


def random_problem(rng: random.Random, num_nodes: int) -> OperatorProblem:
    """A random graph with shared values, some impossible conversions and strategies that differ in cost
    only."""
    placements = PLACEMENTS[: rng.randint(2, 4)]
    demands = [Demand(p, g) for p in placements for g in (False, True) if p != "partial"]
    nodes = []
    for index in range(num_nodes):
        operands = tuple(rng.randrange(index) for _ in range(rng.choice((1, 1, 2, 3)) if index else 0))
        strategies = tuple(
            Strategy(
                rng.choice(placements),
                tuple(rng.choice(demands) for _ in operands),
                Cost(rng.randint(0, 9) * 1e-4, rng.randint(0, 5) * 1e6, rng.randint(0, 5) * 1e6),
            )
            for _ in range(rng.randint(1, 3))
        )
        conversions = {
            (p, d): Cost(rng.randint(0, 9) * 1e-4, rng.choice((0, 1e6)))
            for p in placements
            for d in demands
            if p != d.placement or d.gradient_partial
            if rng.random() < 0.9
        }
        nodes.append(OperatorNode(f"n{index}", operands, strategies, conversions))
    equal = ((0, num_nodes - 1),) if rng.random() < 0.2 else ()
    return OperatorProblem(tuple(nodes), equal)


def brute_force(problem: OperatorProblem, price: Price) -> float | None:
    """Written apart from ``assignment_cost``: pays conversions by walking the consumers of a value."""
    best = None
    for chosen in itertools.product(*(range(len(n.strategies)) for n in problem.nodes)):
        picked = [n.strategies[s] for n, s in zip(problem.nodes, chosen, strict=True)]
        if any(picked[a].output != picked[group[0]].output for group in problem.equal for a in group):
            continue
        total, possible = 0.0, True
        for strategy in picked:
            total += strategy.cost.seconds + strategy.cost.saved_bytes * price.saved_s_per_byte
            total += strategy.cost.held_bytes * price.held_s_per_byte
        for v, value in enumerate(problem.nodes):
            asked = set()
            for c, consumer in enumerate(problem.nodes):
                asked |= {picked[c].demands[i] for i, o in enumerate(consumer.operands) if o == v}
            for demand in asked:
                if demand == Demand(picked[v].output):
                    continue
                cost = value.conversions.get((picked[v].output, demand))
                if cost is None:
                    possible = False
                    break
                total += cost.seconds + cost.saved_bytes * price.saved_s_per_byte
        if possible and (best is None or total < best):
            best = total
    return best


def random_restriction(rng: random.Random, problem: OperatorProblem) -> dict[int, list[int]]:
    """Strategies that some of the nodes may not go beyond."""
    return {
        index: sorted(rng.sample(range(len(node.strategies)), rng.randint(1, len(node.strategies))))
        for index, node in enumerate(problem.nodes)
        if rng.random() < 0.3
    }


def left_of(problem: OperatorProblem, allowed: Mapping[int, Sequence[int]]) -> OperatorProblem:
    """The problem with nothing but the allowed strategies."""
    return OperatorProblem(
        tuple(
            replace(n, strategies=tuple(n.strategies[s] for s in allowed.get(i, range(len(n.strategies)))))
            for i, n in enumerate(problem.nodes)
        ),
        problem.equal,
    )
