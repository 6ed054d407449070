"""Which outer settings are tried."""

import pytest

from autopar.plan.bounds import Bound
from autopar.plan.decisions import Mesh, ScheduleName
from autopar.solve.candidate import Family
from autopar.solve.candidates import OuterPins, Space, candidates, divisions


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
