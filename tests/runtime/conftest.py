"""The launches of a test module: all of its cases for two ranks in one, all for four in another."""

import pytest

from tests.runtime.world import run_cases


@pytest.fixture(scope="module")
def two(request):
    return run_cases(2, request.module.TWO)


@pytest.fixture(scope="module")
def four(request):
    return run_cases(4, request.module.FOUR)
