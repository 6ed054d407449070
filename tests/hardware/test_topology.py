"""How groups lie over nodes, against a list of every group."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import make_cluster
from autopar.hardware.link import CollectiveKind
from autopar.hardware.topology import Spread, crosses_nodes, spread

KINDS = tuple(CollectiveKind)


def groups(num_devices: int, size: int, stride: int) -> list[list[int]]:
    span = size * stride
    return [
        [outer * span + inner + i * stride for i in range(size)]
        for outer in range(num_devices // span)
        for inner in range(stride)
    ]


@pytest.mark.parametrize("seed", range(150))
def test_the_worst_group_is_found_among_all(seed: int) -> None:
    rng = random.Random(seed)
    sizes = [rng.choice([1, 2, 3, 4, 5, 6, 8]) for _ in range(3)]
    num_devices = sizes[0] * sizes[1] * sizes[2]
    divisors = [d for d in range(1, num_devices + 1) if num_devices % d == 0]
    per_node = rng.choice(divisors)
    stride = 1
    for size in sizes:
        every = groups(num_devices, size, stride)
        lying = []
        for group in every:
            nodes = Counter(rank // per_node for rank in group)
            lying.append((1 if len(nodes) > 1 else 0, -min(nodes.values()), len(nodes)))
        found = spread(per_node, num_devices, size, stride)
        worst = max(lying)
        assert (int(found.num_nodes > 1), -found.fewest, found.num_nodes) == worst
        for first in range(size):
            for second in range(first + 1, size):
                crossed = any(group[first] // per_node != group[second] // per_node for group in every)
                assert crosses_nodes(per_node, num_devices, size, stride, first, second) == crossed
        stride *= size


def test_groups_that_fit_lie_in_one_node_and_others_do_not() -> None:
    assert spread(8, 32, 8, 1) == Spread(1, 8, 8)
    assert spread(8, 32, 4, 8) == Spread(4, 1, 1)
    assert spread(8, 32, 8, 4) == Spread(4, 2, 2)
    # Tensor degree 6 on nodes of 8: ranks 6 to 11 lie 2 and 4 on their nodes.
    assert spread(8, 24, 6, 1).num_nodes == 2
    assert spread(8, 24, 6, 1).fewest == 2


def test_a_group_that_crosses_nodes_askew_is_no_faster_than_one_that_lies_straight() -> None:
    cluster = make_cluster(load_device("a100-sxm-80gb"), 3)
    inside = cluster.collective_s(CollectiveKind.ALL_REDUCE, 2**28, 8)
    askew = cluster.collective_s(CollectiveKind.ALL_REDUCE, 2**28, 6)
    assert askew > 2 * inside


@pytest.mark.parametrize("kind", KINDS)
def test_an_axis_inside_nodes_is_quicker_than_the_same_across_them(kind: CollectiveKind) -> None:
    cluster = make_cluster(load_device("h100-sxm-80gb"), 8)
    times = [cluster.collective_s(kind, 2**27, 8, stride) for stride in (1, 2, 4, 8)]
    assert times[0] < times[1] <= times[2] <= times[3]


def test_a_message_between_stages_is_as_slow_as_in_the_slowest_pipeline() -> None:
    cluster = make_cluster(load_device("h100-sxm-80gb"), 4)
    inside, across = cluster.p2p_s(2**24, 0, 1), cluster.p2p_s(2**24, 0, 8)
    # Pipeline of 8 inside nodes; of 8 with stride 2, whose fourth boundary crosses; outermost.
    assert [cluster.axis_p2p_s(2**24, s, s + 1, 8, 1) for s in range(7)] == [inside] * 7
    assert [cluster.axis_p2p_s(2**24, s, s + 1, 8, 2) for s in range(7)] == [inside] * 3 + [across] + [
        inside
    ] * 3
    assert cluster.axis_p2p_s(2**24, 1, 0, 4, 8) == across
    # Pipelines of 3 on nodes of 8 do not lie alike: some cross at either boundary.
    askew = make_cluster(load_device("h100-sxm-80gb"), 3)
    assert askew.axis_p2p_s(2**24, 0, 1, 3, 1) == askew.axis_p2p_s(2**24, 1, 2, 3, 1) == across
