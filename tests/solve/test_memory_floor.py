"""What all ranks can hold together bounds every plan of a family: see also ``test_traffic_floor``."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from autopar.plan.decisions import Mesh, ScheduleName
from autopar.solve.candidates import OuterPins, families, meshes
from autopar.solve.floors import Floors
from autopar.solve.memory_floor import _Options
from autopar.solve.search import search
from tests.solve.brute_force import shortest_steps
from tests.solve.fake_choices import MILLION, FakeCase, fake_cluster, random_case


@pytest.mark.parametrize("seed", range(40))
def test_it_is_the_least_time_over_mixtures_of_options_within_memory(seed: int) -> None:
    """Two blocks of two options each: the least over a grid of mixtures is no less, and about as little."""
    rng = np.random.default_rng(seed)
    times, held = rng.uniform(1, 4, 4), rng.uniform(0, 5, 4)
    memory = rng.uniform(0, 10)
    options = _Options(np.array([[0, 1], [2, 3]]), held.reshape(2, 2))

    found_s = options.least_s(times, np.ones(2), memory)

    shares = np.linspace(0, 1, 401)
    one, other = np.meshgrid(shares, shares)
    total_s = (1 - one) * times[0] + one * times[1] + (1 - other) * times[2] + other * times[3]
    total_held = (1 - one) * held[0] + one * held[1] + (1 - other) * held[2] + other * held[3]
    least_s = total_s[total_held <= memory].min(initial=math.inf)
    if math.isinf(found_s):
        assert math.isinf(least_s)
    else:
        assert found_s <= least_s * (1 + 1e-9)
        assert math.isinf(least_s) or found_s >= least_s - 0.05


def tight_case(seed: int) -> FakeCase:
    """Blocks that save much and hold little, which a device has room for in part."""
    rng = random.Random(seed)
    case = random_case(rng, pins=OuterPins(Mesh(), offload=()))
    for kind in case.choices.kinds:
        kind.recompute, kind.elements, kind.transient = True, rng.choice((1, 2)) * MILLION, MILLION
        kind.saved = rng.choice((100, 200, 400)) * MILLION
    limit = rng.choice((1_100, 1_150, 1_250, 1_400, 1_700)) * MILLION
    case.job = replace(
        case.job, cluster=fake_cluster(rng, 1, rng.choice((2, 4))), memory_limit_bytes=limit, global_batch=8
    )
    case.space = replace(case.space, nodes=1, devices_per_node=case.job.cluster.num_devices)
    return case


def test_memory_raises_the_bounds_of_families_and_none_above_its_best_plan() -> None:
    raised = compared = 0
    for seed in range(30):
        case = tight_case(seed)
        roomy = replace(case, job=replace(case.job, memory_limit_bytes=10**15))
        floors, free = (Floors(one.choices, one.space, one.job, lambda text: None) for one in (case, roomy))
        legal = meshes(
            case.job.cluster.num_devices, case.space.num_blocks, case.tensor_degrees, case.space.pins
        )
        every = list(families(case.job.global_batch, legal, case.space.pins))
        shortest = shortest_steps(case)
        for family in every:
            floors.note(family)
            free.note(family)
            floors.table_floor(family)
            free.table_floor(family)
        for family in every:
            step_s = shortest.get(family, math.inf)
            compared += step_s < math.inf
            for worth_s in (1.0001 * step_s, 1.3 * step_s) if step_s < math.inf else (0.05, math.inf):
                assert floors.exchange_s(family, worth_s) <= step_s * (1 + 1e-9)
            if step_s < math.inf:
                known_s = floors.exchange_s(family, 1.0001 * step_s)
                raised += known_s > free.exchange_s(family, 1.0001 * step_s) * (1 + 1e-6)
    assert compared > 50
    assert raised > 10


@pytest.mark.parametrize("seed", range(202, 210))
def test_what_memory_forbids_is_looked_for_in_host_memory(seed: int) -> None:
    """The search against every plan, where blocks hold and save much and anything may be offloaded."""
    case, rng = tight_case(seed), random.Random(seed)
    for kind in case.choices.kinds:
        kind.elements = rng.choice((2, 10, 30, 60)) * MILLION
    pins = OuterPins(Mesh(), schedule=rng.choice(list(ScheduleName)))
    case.space, case.job = replace(case.space, pins=pins), replace(case.job, global_batch=4)
    legal = meshes(case.job.cluster.num_devices, case.space.num_blocks, case.tensor_degrees, pins)

    found = search(case.choices, families(4, legal, pins), case.space, case.job)

    shortest_s = min(shortest_steps(case).values(), default=None)
    assert (found is None) == (shortest_s is None)
    if found is not None and shortest_s is not None:
        assert found.bound_s <= shortest_s * (1 + 1e-9)
        assert found.gap > 0 or found.best.step_s == pytest.approx(shortest_s, rel=1e-9)
