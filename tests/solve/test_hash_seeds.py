"""Hashes of words differ from process to process: nothing that a search does may depend on them."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("work", [5_000])
def test_a_search_meets_the_same_candidates_in_every_process(work: int) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.solve.met_candidates", str(work)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        )
        for seed in (1, 2, 3)
    ]
    first, *others = [process.communicate(timeout=120)[0] for process in processes]
    assert first.count("Candidate(") > 1
    assert all(other == first for other in others)
