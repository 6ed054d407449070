"""What conversions send."""

import pytest

from autopar.hardware.link import CollectiveKind
from autopar.sharding.placement import PARTIAL, REPLICATE, Placement, Shard
from autopar.sharding.redistribution import conversion, conversion_units, traffic_units


@pytest.mark.parametrize(
    ("source", "wanted", "partial", "functions"),
    [
        (REPLICATE, REPLICATE, False, []),
        (REPLICATE, REPLICATE, True, ["copy_to"]),
        (REPLICATE, Shard(1), False, ["split"]),
        (PARTIAL, REPLICATE, False, ["all_reduce"]),
        (PARTIAL, REPLICATE, True, ["all_reduce_both"]),
        (PARTIAL, Shard(0), False, ["reduce_scatter"]),
        (Shard(0), REPLICATE, False, ["gather"]),
        (Shard(0), REPLICATE, True, ["gather_partial"]),
        (Shard(0), Shard(0), True, []),
        (Shard(0), Shard(1), False, ["all_to_all"]),
        (Shard(0, 3), Shard(0), False, ["gather", "split"]),
        (Shard(0), PARTIAL, False, ["pad_to_partial"]),
        (REPLICATE, PARTIAL, False, ["to_partial"]),
        (PARTIAL, PARTIAL, True, []),
    ],
    ids=str,
)
def test_conversion_functions(
    source: Placement, wanted: Placement, partial: bool, functions: list[str]
) -> None:
    assert [step.function for step in conversion(source, wanted, partial)] == functions


def test_ring_traffic() -> None:
    """On 4 ranks: 3/4 of a tensor for a gather, twice that for an all-reduce, 3/16 for an all-to-all."""
    step, unit = conversion(Shard(0), REPLICATE, True)[0], 3 / 16
    assert step.wire_units(4, gradient=False) * unit == 3 / 4
    assert step.wire_units(4, gradient=True) * unit == 3 / 2
    assert traffic_units(CollectiveKind.ALL_REDUCE, 4) * unit == 3 / 2
    assert traffic_units(CollectiveKind.ALL_TO_ALL, 4) * unit == 3 / 16


def test_reduction_costs_the_same_in_one_step_or_two() -> None:
    """An all-reduce forward, against a reduce-scatter forward and a gather backward: an exact tie."""
    whole = conversion_units(PARTIAL, REPLICATE, False, 3, gradient=True)
    assert whole == conversion_units(PARTIAL, Shard(0), False, 3, gradient=True)


def test_values_without_gradient_send_nothing_backward() -> None:
    assert conversion_units(REPLICATE, Shard(0), False, 2, gradient=False) == 0
    assert conversion_units(REPLICATE, REPLICATE, True, 2, gradient=False) == 0
