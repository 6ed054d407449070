"""The search against a search through everything, written apart from it."""

import random

import pytest

from autopar.solve.candidate import SearchResult
from autopar.solve.candidates import families, meshes
from autopar.solve.search import search
from tests.solve.brute_force import shortest_steps
from tests.solve.fake_choices import FakeCase, random_case

CASES = 320


def found_by(case: FakeCase) -> SearchResult | None:
    """What the search finds."""
    space, job = case.space, case.job
    legal = meshes(job.cluster.num_devices, space.num_blocks, case.tensor_degrees, space.pins)
    return search(case.choices, families(job.global_batch, legal, space.pins), space, job, num_alternatives=2)


@pytest.mark.parametrize("seed", range(CASES))
def test_search_equals_a_search_through_everything(seed: int) -> None:
    case = random_case(random.Random(seed))
    expected, result = min(shortest_steps(case).values(), default=None), found_by(case)
    if expected is None:
        assert result is None
        return
    assert result is not None
    assert result.bound_s <= expected * (1 + 1e-9)
    assert result.best.step_s >= expected * (1 - 1e-9)
    for alternative in result.alternatives:
        if alternative.prediction is not None:
            assert result.best.step_s <= alternative.prediction.step_time_s
    if result.gap == 0:
        assert result.best.step_s == pytest.approx(expected, rel=1e-8)
