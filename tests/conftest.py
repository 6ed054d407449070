"""Settings that hold for all tests: one thread a process, nothing fetched, the same random numbers."""

import os
import random
import sys

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("COLUMNS", "120")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Starts every test and its fixtures from one state, whichever ran before it in the same process."""
    random.seed(0)
    if "torch" in sys.modules:  # tests that need no torch do not wait for its import
        sys.modules["torch"].manual_seed(0)
