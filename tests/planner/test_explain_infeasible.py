"""What is said where nothing fits."""

from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import cluster_of
from autopar.plan.decisions import Plan, Precision, ScheduleName
from autopar.planner.explain_infeasible import nothing_fits
from autopar.planner.remedies import Remedies
from autopar.solve.candidate import Candidate, Job, Shortfall
from autopar.units import GiB, MiB

DEVICE = load_device("a100-sxm-80gb")
LEAST = Shortfall(Candidate(1, 1, 8, 4, 2, (3,), ScheduleName.ONE_F_ONE_B), 0, 3 * GiB)


def said(limit_bytes: int) -> str:
    job = Job(cluster_of(DEVICE, 8), Precision.BF16, "adamw", 64, limit_bytes)
    return str(nothing_fits(LEAST, Remedies(4 * GiB), job, Plan()))


def test_names_what_is_usable() -> None:
    text = said(DEVICE.framework_reserved_bytes + GiB)
    assert "needs 3.00 GiB more than the 1.00 GiB usable of a a100-sxm-80gb, at best (mesh 1 x 8 x 1" in text


def test_a_limit_below_what_the_framework_takes_is_no_negative_size() -> None:
    text = said(70 * MiB)
    assert "of 70.00 MiB, the" in text and "the framework takes leave nothing, at best" in text
    assert "-" not in text.partition(", at best")[0]
