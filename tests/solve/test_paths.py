"""Paths through schedules against the simulator."""

import random
from itertools import pairwise

import numpy as np
import pytest

from autopar.plan.decisions import ScheduleName
from autopar.schedule.actions import SPLIT_BACKWARD, stage_rank
from autopar.schedule.simulator import finish_times
from autopar.solve.paths import Path, critical_path, rank_paths

CASES = 400


def virtual_of(name: ScheduleName, rng: random.Random) -> int:
    """Stages of a rank that a schedule runs."""
    if name is ScheduleName.ZBV:
        return 2
    return rng.choice((2, 3, 4)) if name is ScheduleName.INTERLEAVED else 1


@pytest.mark.parametrize("seed", range(0, CASES, 40))
def test_no_path_is_longer_than_the_simulated_step_whatever_the_stages_take(seed: int) -> None:
    for case in range(seed, seed + 40):
        rng = random.Random(case)
        name, p = rng.choice(list(ScheduleName)), rng.randint(1, 5)
        virtual = virtual_of(name, rng)
        m = rng.choice((1, 2, 3, p, p + 1, 2 * p, 3 * p + 1, 5 * p, 8 * p + 3, 11 * p))
        ranks = [stage_rank(name, stage, p, virtual) for stage in range(p * virtual)]
        forward = [rng.choice((0.1, 1.0, 2.0)) * rng.random() for _ in ranks]
        backward = [rng.choice((0.5, 2.0)) * f * rng.uniform(0.5, 1.5) for f in forward]
        weight = [b * rng.random() if name in SPLIT_BACKWARD else 0.0 for b in backward]
        messages = [
            0.0 if one == other else rng.choice((0.0, 0.2)) * rng.random() for one, other in pairwise(ranks)
        ]

        ends_s = finish_times(name, m, virtual, forward, backward, messages, weight)

        stages_s = np.array([forward, np.subtract(backward, weight), weight])
        longest = critical_path(name, virtual, m, stages_s, messages)
        assert longest.seconds(stages_s, messages) == pytest.approx(max(ends_s))
        for path in (*rank_paths(name, p, m, virtual), _another(name, virtual, m, p, rng)):
            assert path.seconds(stages_s, messages) <= ends_s[path.end] + 1e-9, (name, p, m, virtual)
            assert all(ranks[stage] == ranks[path.end] for stage in path.later)
            assert all(ends_s[stage] >= ends_s[path.end] for stage in path.later), (name, p, m, virtual)


def _another(name: ScheduleName, virtual: int, m: int, p: int, rng: random.Random) -> Path:
    """The longest path of some other times: of these it is a path as well."""
    times = np.array([[rng.random() for _ in range(p * virtual)] for _ in range(3)])
    if name not in SPLIT_BACKWARD:
        times[2] = 0.0
    return critical_path(name, virtual, m, times, [0.0] * (p * virtual - 1))


@pytest.mark.parametrize("name", list(ScheduleName))
@pytest.mark.parametrize("pipeline", [2, 4, 7])
@pytest.mark.parametrize("rounds", [1, 3, 9])
def test_with_even_stages_the_longest_path_is_nearly_the_step(
    name: ScheduleName, pipeline: int, rounds: int
) -> None:
    virtual = virtual_of(name, random.Random(pipeline))
    size, m = pipeline * virtual, rounds * pipeline
    weight = [1.0] * size if name in SPLIT_BACKWARD else [0.0] * size

    ends_s = finish_times(name, m, virtual, [1.0] * size, [2.0] * size, [0.0] * (size - 1), weight)

    stages_s = np.array([[1.0] * size, np.subtract(2.0, weight), weight])
    longest = max(p.seconds(stages_s, [0.0] * (size - 1)) for p in rank_paths(name, pipeline, m, virtual))
    assert longest >= 0.96 * max(ends_s)
