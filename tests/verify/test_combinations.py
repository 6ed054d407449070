"""Schedules x ZeRO levels x recompute x meshes of 4 and 8 on the example models: equal to one process."""

import pytest

from tests.runtime.world import run_cases
from tests.verify.combinations import REFUSED, TOLERANCE, errors_of, sample

# Some cannot be said: the recommender has fewer blocks than eight stages.
IN_THE_DEFAULT_RUN = {4: 54, 8: 10}
IN_THE_LONG_RUN = {4: 48, 8: 16}


def assert_all_equal(num_ranks, cases):
    found = run_cases(num_ranks, cases)
    errors = {case.name: errors_of(found[case.name]) for case in cases}
    ran = [case for case in cases if errors[case.name] != REFUSED]
    wrong = [
        (case.name, case.model, case.options, errors[case.name])
        for case in ran
        if isinstance(errors[case.name], str) or errors[case.name] > TOLERANCE
    ]
    assert not wrong
    assert len(ran) >= 0.7 * len(cases)


@pytest.mark.parametrize("num_ranks", IN_THE_DEFAULT_RUN)
def test_a_sample_of_combinations_equals_one_process(num_ranks):
    # The ResNet has most blocks, and so takes longest: it comes in the long run.
    models = ("gpt", "perception", "recommender")
    cases = sample(num_ranks, IN_THE_DEFAULT_RUN[num_ranks], models=models, num_steps=1)
    assert_all_equal(num_ranks, cases)


def test_fp16_gradients_that_overflow_at_first_are_compared_in_a_later_attempt():
    (case,) = (case for case in sample(4, 12, seed=2) if case.name == "4-521")
    assert (case.dtype, case.options["num_steps"]) == ("float16", 2)
    assert_all_equal(4, [case])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("num_ranks", IN_THE_LONG_RUN)
def test_a_larger_sample_of_combinations_equals_one_process(num_ranks, part):
    assert_all_equal(num_ranks, sample(num_ranks, IN_THE_LONG_RUN[num_ranks] // 4, seed=part + 1))
