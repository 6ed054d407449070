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
    """1 MB on 4 ranks: 3/4 of it for a gather, twice that for an all-reduce, a quarter for an all-to-all."""
    step = conversion(Shard(0), REPLICATE, True)[0]
    assert step.wire_bytes(1_000_000, 4, gradient=False) == 750_000
    assert step.wire_bytes(1_000_000, 4, gradient=True) == 1_500_000
    assert traffic_units(CollectiveKind.ALL_REDUCE, 100, 4) == 2 * traffic_units(
        CollectiveKind.ALL_GATHER, 100, 4
    )
    assert 4 * traffic_units(CollectiveKind.ALL_TO_ALL, 100, 4) == traffic_units(
        CollectiveKind.ALL_GATHER, 100, 4
    )


def test_reduction_costs_the_same_in_one_step_or_two() -> None:
    """An all-reduce forward, against a reduce-scatter forward and a gather backward: an exact tie."""
    whole = conversion_units(PARTIAL, REPLICATE, False, 12345, 3, gradient=True)
    assert whole == conversion_units(PARTIAL, Shard(0), False, 12345, 3, gradient=True)


def test_values_without_gradient_send_nothing_backward() -> None:
    assert conversion_units(REPLICATE, Shard(0), False, 100, 2, gradient=False) == 0
    assert conversion_units(REPLICATE, REPLICATE, True, 100, 2, gradient=False) == 0
