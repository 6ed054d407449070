import random

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
from tests.solve.random_problems import brute_force, left_of, random_problem, random_restriction


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
        allowed = random_restriction(rng, problem)
        left = left_of(problem, allowed)
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
