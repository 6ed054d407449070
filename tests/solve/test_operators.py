import itertools
import random
from dataclasses import replace

import pytest

from autopar.solve.operator_problem import (
    Cost,
    Demand,
    OperatorNode,
    OperatorProblem,
    Price,
    Strategy,
    assignment_cost,
)
from autopar.solve.operators import OperatorSolver

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


@pytest.mark.parametrize("seed", range(300))
def test_the_optimum_equals_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    problem = random_problem(rng, rng.randint(2, 7))
    price = Price(rng.choice((0.0, 1e-10)), rng.choice((0.0, 2e-10)))
    expected, solution = brute_force(problem, price), OperatorSolver(problem).solve(price)
    if expected is None:
        assert solution is None
        return
    assert solution is not None
    assert solution.objective_s == pytest.approx(expected, rel=1e-6, abs=1e-12)
    recomputed = assignment_cost(problem, solution.strategies)
    assert recomputed is not None
    assert recomputed.priced_s(price) == pytest.approx(solution.objective_s, rel=1e-12)
    assert solution.bound_s <= solution.objective_s * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(60))
def test_one_model_serves_many_prices_and_restrictions(seed: int) -> None:
    rng = random.Random(1000 + seed)
    problem = random_problem(rng, 6)
    solver = OperatorSolver(problem)
    for _ in range(4):
        price = Price(rng.choice((0.0, 1e-10, 1e-9)), rng.choice((0.0, 2e-10)))
        allowed = {
            index: sorted(rng.sample(range(len(node.strategies)), rng.randint(1, len(node.strategies))))
            for index, node in enumerate(problem.nodes)
            if rng.random() < 0.3
        }
        left = OperatorProblem(
            tuple(
                replace(
                    n, strategies=tuple(n.strategies[s] for s in allowed.get(i, range(len(n.strategies))))
                )
                for i, n in enumerate(problem.nodes)
            ),
            problem.equal,
        )
        expected, solution = brute_force(left, price), solver.solve(price, allowed)
        assert (expected is None) == (solution is None)
        if solution is not None and expected is not None:
            assert solution.objective_s == pytest.approx(expected, rel=1e-6, abs=1e-12)
            assert all(solution.strategies[i] in own for i, own in allowed.items())


def test_a_conversion_is_paid_once_by_consumers_that_want_the_same() -> None:
    gather = {("shard(0)", Demand("replicate", True)): Cost(5.0)}
    source = OperatorNode("source", (), (Strategy("shard(0)", ()),), gather)
    readers = tuple(
        OperatorNode(f"r{i}", (0,), (Strategy("replicate", (Demand("replicate", True),)),), {})
        for i in range(3)
    )
    solution = OperatorSolver(OperatorProblem((source, *readers))).solve(Price())
    assert solution is not None
    assert solution.objective_s == pytest.approx(5.0)


def test_the_price_of_saved_bytes_moves_the_optimum() -> None:
    quick = Strategy("replicate", (), Cost(1.0, saved_bytes=100))
    lean = Strategy("replicate", (), Cost(2.0, saved_bytes=10))
    problem = OperatorProblem((OperatorNode("n", (), (quick, lean), {}),))
    cheap, dear = OperatorSolver(problem).solve(Price()), OperatorSolver(problem).solve(Price(1.0))
    assert cheap is not None and dear is not None
    assert (cheap.strategies, dear.strategies) == ((0,), (1,))


def test_no_common_placement_is_infeasible() -> None:
    source = OperatorNode("source", (), (Strategy("shard(0)", ()),), {})
    reader = OperatorNode("reader", (0,), (Strategy("replicate", (Demand("replicate"),)),), {})
    assert OperatorSolver(OperatorProblem((source, reader))).solve(Price()) is None
