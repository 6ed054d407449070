import itertools
import random

import pytest

from autopar.solve.chain_problem import evaluate_chain
from autopar.solve.shortfall import least_excess
from tests.solve.random_chains import random_chain


@pytest.mark.parametrize("seed", range(150))
def test_least_excess_equals_brute_force(seed: int) -> None:
    problem = random_chain(random.Random(5000 + seed), max_blocks=5)
    size, best = len(problem.blocks), None
    for cuts in itertools.combinations(range(1, size), problem.num_stages - 1):
        first = (0, *cuts)
        if problem.first_blocks and problem.first_blocks != first:
            continue
        stage_of = [sum(block >= f for f in first) - 1 for block in range(size)]
        for options in itertools.product(
            *(range(len(problem.options(stage_of[block], block))) for block in range(size))
        ):
            loads = evaluate_chain(problem, first, options)
            if loads is not None:
                fullest = max(load.memory_bytes for load in loads)
                best = fullest if best is None else min(best, fullest)
    assert best is not None
    excess = least_excess(problem)
    assert excess.missing_bytes == best - problem.limit_bytes
    assert 0 <= excess.stage < problem.num_stages
