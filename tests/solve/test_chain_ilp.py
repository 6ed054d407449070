import random
from dataclasses import replace

import pytest

from autopar.solve import memory_front
from autopar.solve.chain import ChainSolver
from autopar.solve.chain_ilp import solve_chain_ilp
from autopar.solve.chain_problem import ChainProblem, Option
from tests.solve.random_chains import random_chain


@pytest.mark.parametrize("seed", range(60))
def test_the_ilp_and_the_shortest_paths_agree(seed: int) -> None:
    problem = random_chain(random.Random(9000 + seed), max_blocks=9)
    by_paths, by_ilp = ChainSolver(problem).solve(), solve_chain_ilp(problem)
    assert (by_paths is None) == (by_ilp is None)
    if by_paths is not None and by_ilp is not None:
        assert by_paths.objective_s == pytest.approx(by_ilp.objective_s, rel=1e-6)
        assert all(load.memory_bytes <= problem.limit_bytes for load in by_ilp.loads)


def test_a_front_that_was_cut_short_gives_a_bound_below_the_objective(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_front, "_LARGEST", 3)
    rng = random.Random(1)
    options = tuple(
        Option(
            "replicate", "replicate", 10 + 3 * x + rng.random(), int(100 * (1 - x)) + rng.randint(0, 9), 5, 2
        )
        for x in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    )
    problem = ChainProblem(((options,),), (0,) * 10, (2, 1), 8, 700)
    exact = solve_chain_ilp(problem)
    found = ChainSolver(problem).solve()
    assert exact is not None and found is not None
    assert found.bound_s <= exact.objective_s * (1 + 1e-6) <= found.objective_s * (1 + 2e-6)
    assert found.bound_s > 0.9 * exact.objective_s
    loose = ChainSolver(replace(problem, limit_bytes=10**6)).solve()
    assert loose is not None and loose.bound_s == loose.objective_s
