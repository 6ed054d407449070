"""The continuous relaxation against every plan of small candidates."""

import math
import random
from collections.abc import Sequence

import pytest

from autopar.cost.step import predict
from autopar.solve.candidate import Candidate, ChoiceTable, Job
from autopar.solve.chain_build import candidate_training
from autopar.solve.parts import parts_of
from autopar.solve.relaxation import Relaxed, relaxed_step_s
from autopar.solve.table_floor import TableFloor
from tests.solve.brute_force import layouts, settings
from tests.solve.fake_choices import FakeCase, random_case

CASES = 60


def brute_force(case: FakeCase, setting: tuple) -> tuple[Candidate, float, float]:
    """A candidate with its shortest step within memory and without; infinite where nothing fits."""
    (p, t, d), b, order, name, v, level, group, offload = setting
    candidate = Candidate(
        p, t, d, case.job.global_batch // (d * b), b, (level,) * (p * v), name, v, order, group, offload
    )
    table = case.choices._table(t, b, candidate.tensor_stride)
    fitting = free = math.inf
    for layout in layouts(case, setting, table):
        prediction = predict(layout, case.job.cluster, case.job.memory_limit_bytes)
        free = min(free, prediction.step_time_s)
        if prediction.fits:
            fitting = min(fitting, prediction.step_time_s)
    return candidate, fitting, free


def relaxed(table: ChoiceTable, candidates: Sequence[Candidate], job: Job, slowest_s: float = 0.0) -> Relaxed:
    parts = [
        parts_of(table, candidate_training(candidate, job), level)
        for candidate in candidates
        for level in sorted(set(candidate.zero))
    ]
    return relaxed_step_s(table, candidates, parts, job, slowest_s=slowest_s)


@pytest.mark.parametrize("seed", range(0, CASES, 10))
def test_it_is_never_above_the_shortest_step_and_never_calls_infeasible_what_fits(seed: int) -> None:
    shares = []
    for case_seed in range(seed, seed + 10):
        rng = random.Random(5_000 + case_seed)
        case = random_case(rng)
        legal = list(settings(case))
        for setting in rng.sample(legal, min(6, len(legal))):
            candidate, fitting, free = brute_force(case, setting)
            table = case.choices._table(candidate.tensor, candidate.micro_batch, candidate.tensor_stride)
            slowest_s = TableFloor((table,)).slowest_s(0, candidate.pipeline)
            found = relaxed(table, (candidate,), case.job, slowest_s)

            assert found.free_s <= free * (1 + 1e-9)
            assert found.step_s <= fitting * (1 + 1e-9)
            if fitting < math.inf:
                shares.append(found.step_s / fitting)
    assert sum(shares) >= 0.85 * len(shares)


@pytest.mark.parametrize("seed", range(8))
def test_what_bounds_a_bundle_bounds_each_of_its_candidates(seed: int) -> None:
    rng = random.Random(9_000 + seed)
    case = random_case(rng)
    one = rng.choice(list(settings(case)))
    alike = [
        s for s in settings(case) if (s[0], s[1], s[3], s[4], s[7]) == (one[0], one[1], *one[3:5], one[7])
    ]
    members = [brute_force(case, setting) for setting in alike if setting[2] == one[2]][:4]
    candidates = tuple(candidate for candidate, _, _ in members)
    table = case.choices._table(one[0][1], one[1], candidates[0].tensor_stride)

    found = relaxed(table, candidates, case.job)

    assert found.step_s <= min(fitting for _, fitting, _ in members) * (1 + 1e-9)
    assert found.step_s <= min(relaxed(table, (c,), case.job).step_s for c in candidates) * (1 + 1e-5)
