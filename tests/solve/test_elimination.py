import itertools
import random

import pytest

from autopar.solve.elimination import Elimination
from autopar.solve.operator_problem import (
    Cost,
    Demand,
    OperatorNode,
    OperatorProblem,
    Price,
    Strategy,
    assignment_cost,
)
from tests.solve.random_problems import brute_force, left_of, random_problem, random_restriction

PRICES = (Price(), Price(1e-10), Price(0.0, 2e-10), Price(1e-9, 1e-10))


@pytest.mark.parametrize("seed", range(150))
def test_every_optimum_of_one_pass_equals_brute_force(seed: int) -> None:
    """For all prices and all choices of the kept nodes, under random restrictions."""
    rng = random.Random(seed)
    problem = random_problem(rng, rng.randint(3, 6))
    last = len(problem.nodes) - 1
    allowed = random_restriction(rng, problem) if seed % 2 else {}
    optima = Elimination(problem).optima(PRICES, allowed, ((0,), (last,)))
    assert optima is not None
    options = [allowed.get(node, range(len(problem.nodes[node].strategies))) for node in (0, last)]
    for (p, price), (i, first), (j, second) in itertools.product(
        enumerate(PRICES), *(enumerate(own) for own in options)
    ):
        expected = brute_force(left_of(problem, {**allowed, 0: [first], last: [second]}), price)
        found = optima.best((p, i, j))
        assert (found is None) == (expected is None)
        if found is None or expected is None:
            continue
        assert found.objective_s == pytest.approx(expected, rel=1e-12, abs=1e-15)
        cost = assignment_cost(problem, found.strategies)
        assert cost is not None and cost.priced_s(price) == pytest.approx(expected, rel=1e-12, abs=1e-15)
        assert (found.strategies[0], found.strategies[last]) == (first, second)
        assert all(found.strategies[node] in own for node, own in allowed.items())


@pytest.mark.parametrize("seed", range(20))
def test_free_words_are_the_best_of_all(seed: int) -> None:
    problem = random_problem(random.Random(seed), 6)
    optima = Elimination(problem).optima(PRICES, {}, ((0,), (5,)))
    assert optima is not None
    for index, price in enumerate(PRICES):
        found, expected = optima.best((index, None, None)), brute_force(problem, price)
        assert (found is None) == (expected is None)
        if found is not None:
            assert found.objective_s == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_nodes_of_a_kept_group_choose_together() -> None:
    """Apart, each would take its own cheapest."""
    ways = [
        (Strategy("replicate", (), Cost(a)), Strategy("shard(0)", (), Cost(b))) for a, b in ((1, 5), (9, 2))
    ]
    first, second = (OperatorNode("input", (), way, {}) for way in ways)
    reader = OperatorNode("reader", (0, 1), (Strategy("replicate", (Demand("replicate"),) * 2),), {})
    gather = {("shard(0)", Demand("replicate")): Cost(0.5)}
    first, second = (OperatorNode(node.name, (), node.strategies, gather) for node in (first, second))
    optima = Elimination(OperatorProblem((first, second, reader))).optima((Price(),), {}, ((0, 1),))
    assert optima is not None
    assert optima.objective_s.tolist() == [[10.0, 8.0]]
    best = optima.best((0, None))
    assert best is not None and best.strategies == (1, 1, 0)


@pytest.mark.parametrize("num_readers", [1, 2, 3, 6])
def test_a_conversion_is_paid_once_however_many_share_it(num_readers: int) -> None:
    gather = {("shard(0)", Demand("replicate", True)): Cost(5.0)}
    source = OperatorNode("source", (), (Strategy("shard(0)", ()),), gather)
    dear = Strategy("replicate", (Demand("replicate", True),))
    own = Strategy("shard(0)", (Demand("shard(0)"),), Cost(2.0))
    readers = tuple(OperatorNode(f"r{i}", (0,), (dear, own), {}) for i in range(num_readers))
    optima = Elimination(OperatorProblem((source, *readers))).optima((Price(),), {})
    assert optima is not None
    best = optima.best((0,))
    assert best is not None and best.objective_s == min(5.0, 2.0 * num_readers)


def test_a_graph_that_is_too_wide_is_left_to_others() -> None:
    """Every node reads every other: nothing can be eliminated in small tables."""
    ways = [f"shard({dim})" for dim in range(6)]
    nodes = []
    for index in range(12):
        strategies = tuple(Strategy(way, (Demand(way),) * index) for way in ways)
        costs = {(a, Demand(b)): Cost(float(a != b)) for a in ways for b in ways}
        nodes.append(OperatorNode(f"n{index}", tuple(range(index)), strategies, costs))
    assert Elimination(OperatorProblem(tuple(nodes))).optima((Price(),), {}) is None


@pytest.mark.parametrize("seed", range(40))
def test_where_every_consumer_pays_for_itself_a_choice_is_no_better_and_no_worse_than_it_says(
    seed: int,
) -> None:
    problem = random_problem(random.Random(seed), 8)
    exact = Elimination(problem).optima(PRICES, {}, ((0,), (7,)))
    apart = Elimination(problem, shares=False).optima(PRICES, {}, ((0,), (7,)))
    assert exact is not None
    assert apart is not None
    for index, price in enumerate(PRICES):
        best, found = exact.best((index, None, None)), apart.best((index, None, None))
        assert (best is None) == (found is None)
        if best is None or found is None:
            continue
        cost = assignment_cost(problem, found.strategies)
        assert cost is not None
        assert best.objective_s * (1 - 1e-12) <= cost.priced_s(price) <= found.objective_s * (1 + 1e-12)


def recurrence(num_steps: int) -> OperatorProblem:
    """A recurrence that is written out: every step reads all of its inputs."""
    ways = ("replicate", "shard(0)", "shard(1)")
    convert = {(a, Demand(b)): Cost(1e-4) for a in ways for b in ways if a != b}
    free = tuple(Strategy(way, (), Cost(1e-6 * (i + 1))) for i, way in enumerate(ways))
    nodes = [OperatorNode(f"input_{i}", (), free, convert) for i in range(8)]
    for step in range(num_steps):
        read = (*range(8), len(nodes) - 1) if step else tuple(range(8))
        same = tuple(
            Strategy(way, (Demand(way),) * len(read), Cost(1e-5 if way == "replicate" else 5e-6))
            for way in ways
        )
        nodes.append(OperatorNode(f"step_{step}", read, same, convert))
    return OperatorProblem(tuple(nodes))


def test_a_recurrence_that_is_too_wide_is_eliminated_with_conversions_apart() -> None:
    problem = recurrence(12)
    kept = ((len(problem.nodes) - 1,),)
    assert Elimination(problem).optima(PRICES, {}, kept) is None
    found = Elimination(problem, shares=False).optima(PRICES, {}, kept)
    assert found is not None
    best = found.best((0, None))
    assert best is not None
    assert {problem.nodes[i].strategies[s].output for i, s in enumerate(best.strategies)} == {"shard(0)"}
