"""Random models under random plans equal one process: loss, every gradient and every buffer, in float64.

``python -m tests.differential --count 2000`` runs more of them and makes small what fails.
"""

import pytest

from tests.differential.cases import run_trials, trial_of
from tests.differential.shrink import shrink

NUM_CASES = 200
AT_ONCE = 25
IN_THE_DEFAULT_RUN = 4


def assert_equal(seeds, folder):
    for outcome in run_trials([trial_of(seed) for seed in seeds], folder):
        assert not outcome.problem, str(shrink(outcome, folder, most_runs=20))


def test_a_few_random_models_under_random_plans_equal_one_process(tmp_path):
    assert_equal(range(IN_THE_DEFAULT_RUN), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(0, NUM_CASES, AT_ONCE))
def test_random_models_under_random_plans_equal_one_process(first, tmp_path):
    assert_equal(range(first, first + AT_ONCE), tmp_path)
