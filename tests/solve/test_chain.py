import itertools
import random
from dataclasses import replace

import pytest

from autopar.solve.chain import ChainSolver
from autopar.solve.chain_problem import ChainProblem, Option
from tests.solve.random_chains import random_chain

FIELDS = ("paired_bytes", "single_bytes", "floor_bytes")


def brute_force(problem: ChainProblem) -> float | None:
    """Best objective over all cuts and options, written apart from ``evaluate_chain``."""
    n, p, best = len(problem.blocks), problem.num_stages, None
    for cuts in itertools.combinations(range(1, n), p - 1):
        first = (0, *cuts)
        if problem.first_blocks and first != problem.first_blocks:
            continue
        stage_of = [sum(b >= f for f in first) - 1 for b in range(n)]
        table_of = problem.table_of_stage or (0,) * p
        sets = [problem.tables[table_of[stage_of[b]]][problem.blocks[b]] for b in range(n)]
        for options in itertools.product(*sets):
            handed = [problem.first_word, *(o.output_word for o in options)]
            if any(o.input_word != w for o, w in zip(options, handed, strict=False)):
                continue
            if handed[-1] != problem.last_word:
                continue
            seconds, fits = [], True
            for s in range(p):
                mine = [b for b in range(n) if stage_of[b] == s]
                t = sum(options[b].seconds for b in mine)
                memory = max(options[b].transient_bytes for b in mine)
                memory += sum(options[b].held_bytes for b in mine)
                memory += problem.in_flight[s] * sum(options[b].saved_bytes for b in mine)
                extra = [problem.overhead(s, problem.blocks[b]) for b in mine]
                pair, single, floor = ([getattr(e, f) for e in extra] for f in FIELDS)
                for shared in problem.shared:
                    for b in sorted(set(mine) & set(shared.blocks))[1:]:
                        memory -= shared.held_bytes
                        t -= shared.seconds
                        pair[mine.index(b)] -= shared.overhead.paired_bytes
                        single[mine.index(b)] -= shared.overhead.single_bytes
                        floor[mine.index(b)] -= shared.overhead.floor_bytes
                memory += max(single) + max(
                    pair[i] + (pair[i + 1] if i + 1 < len(pair) else 0) for i in range(max(1, len(pair) - 1))
                )
                if s < p - 1:
                    t += options[mine[-1]].send_s
                    t += problem.carry_s[mine[-1]] if problem.carry_s else 0.0
                seconds.append(t)
                fits = fits and max(memory, sum(floor)) <= problem.limit_bytes
            value = sum(seconds) + (problem.num_micro_batches - 1) * max(seconds)
            if fits and (best is None or value < best):
                best = value
    return best


@pytest.mark.parametrize("seed", range(500))
def test_chain_solver_equals_brute_force(seed: int) -> None:
    problem = random_chain(random.Random(seed))
    expected, solution = brute_force(problem), ChainSolver(problem).solve()
    if expected is None:
        assert solution is None
        return
    assert solution is not None
    assert solution.objective_s == pytest.approx(expected, rel=1e-9)
    assert all(load.memory_bytes <= problem.limit_bytes for load in solution.loads)


@pytest.mark.parametrize("limit", [10_000, 700, 60])
def test_chain_of_128_equal_blocks_is_solved_with_every_memory_limit(limit: int) -> None:
    rng = random.Random(7)
    none_full = [
        Option(a, c, 10 + rng.random() + (3 if full else 0), 2 if full else 9, 5, 4 + 8 * full, 0.01)
        for a in ("replicate", "sequence")
        for c in ("replicate", "sequence")
        for full in (False, True)
    ]
    head = (
        Option("replicate", "replicate", 12.0, 4, 30, 20),
        Option("sequence", "replicate", 12.5, 3, 30, 18),
    )
    tail = (Option("replicate", "replicate", 5.0, 1, 30, 2), Option("replicate", "sequence", 5.5, 1, 30, 2))
    blocks = (0, *(1,) * 128, 2)
    problem = ChainProblem(((tail, tuple(none_full), head),), blocks, tuple(range(16, 0, -1)), 64, limit)
    solution = ChainSolver(problem).solve()
    if limit == 60:
        assert solution is None
        return
    assert solution is not None
    loose = ChainSolver(replace(problem, limit_bytes=10**9)).solve()
    assert loose is not None and loose.objective_s <= solution.objective_s
