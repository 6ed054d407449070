"""What is said where nothing fits."""

import re

import pytest

from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import cluster_of
from autopar.plan.decisions import Plan, Precision, ScheduleName
from autopar.planner.explain_infeasible import nothing_fits
from autopar.planner.remedies import Remedies
from autopar.solve.candidate import Candidate, Job, Shortfall
from autopar.units import GiB, MiB, parse_bytes

DEVICE = load_device("a100-sxm-80gb")
LEAST = Shortfall(Candidate(1, 1, 8, 4, 2, (3,), ScheduleName.ONE_F_ONE_B), 0, 3 * GiB)


def said(limit_bytes: int, enough_bytes: int = 4 * GiB) -> str:
    job = Job(cluster_of(DEVICE, 8), Precision.BF16, "adamw", 64, limit_bytes)
    return str(nothing_fits(LEAST, Remedies(enough_bytes), job, Plan()))


def test_names_what_is_usable() -> None:
    text = said(DEVICE.framework_reserved_bytes + GiB)
    assert "needs 3.00 GiB more than the 1.00 GiB usable of a a100-sxm-80gb, at best (mesh 1 x 8 x 1" in text


def test_a_limit_below_what_the_framework_takes_is_no_negative_size() -> None:
    text = said(70 * MiB)
    assert "of 70.00 MiB, the" in text and "the framework takes leave nothing, at best" in text
    assert "-" not in text.partition(", at best")[0]


@pytest.mark.parametrize(
    "enough_bytes", [4 * GiB, 4 * GiB + 1, 7 * GiB + 5 * MiB, 1000 * MiB + 17, 2**40 + 1]
)
def test_the_memory_that_is_said_to_be_enough_is_enough_as_it_is_written(enough_bytes: int) -> None:
    found = re.search(r"on devices with ([\d.]+ \w+)", said(DEVICE.memory_bytes, enough_bytes))
    assert found is not None
    assert enough_bytes <= parse_bytes(found[1]) <= enough_bytes * 1.011
