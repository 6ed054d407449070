"""Which outer settings are tried."""

from itertools import pairwise

import pytest

from autopar.plan.bounds import Bound
from autopar.plan.decisions import Mesh, ScheduleName
from autopar.solve.candidate import Family
from autopar.solve.candidates import OuterPins, Space, candidates, divisions, divisors, micro_batches


def _space(pins: OuterPins) -> Space:
    return Space(pins, num_blocks=4, nodes=1, devices_per_node=2)


@pytest.mark.parametrize("ways", [candidates, divisions])
def test_a_rank_alone_on_its_data_axis_has_zero_3_for_parameters_in_host_memory_only(ways):
    found = list(ways(Family(2, 1, 1, 4, 1), _space(OuterPins(Mesh()))))
    assert any("parameters" in one.offload for one in found)
    for one in found:
        assert set(one.zero) == ({3} if "parameters" in one.offload else {0})


def test_of_bounded_levels_a_rank_alone_has_the_lowest_or_zero_3():
    family, schedule = Family(1, 1, 1, 4, 1), ScheduleName.ONE_F_ONE_B
    for bound, expected in ((Bound(1, 3), {(1,), (3,)}), (Bound(0, 2), {(0,)})):
        space = _space(OuterPins(Mesh(), schedule=schedule, bounds={"zero": bound}))
        assert {one.zero for one in candidates(family, space)} == expected


@pytest.mark.parametrize("samples", [60, 120, 858, 1000, 1200, 2520, 6144, 10000])
def test_no_micro_batch_is_left_out_between_sizes_that_are_far_apart(samples):
    tried, all_of_them = micro_batches(samples, 1), divisors(samples)
    assert (tried[0], tried[-1]) == (1, samples)
    for smaller, larger in pairwise(tried):
        between = [size for size in all_of_them if smaller < size < larger]
        assert not between or larger <= 1.5 * smaller


def test_of_powers_of_two_and_three_times_such_all_micro_batches_are_tried():
    for samples in (256, 512, 768, 1024, 1536, 2048, 4096):
        assert micro_batches(samples, 1) == divisors(samples)
    assert micro_batches(3072, 2) == divisors(1536)
    assert set(micro_batches(1920, 1)) >= {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 384, 1920}


def test_within_a_bound_the_least_and_the_largest_micro_batch_are_tried():
    tried = micro_batches(5040, 1, Bound(5, 700))
    assert (tried[0], tried[-1]) == (5, 630)
    assert len(tried) < len([size for size in divisors(5040) if 5 <= size <= 700])
