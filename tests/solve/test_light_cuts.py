"""Cuts by what is sent between stages, against all cuts there are."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import pytest

from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import make_cluster
from autopar.plan.bounds import Bound
from autopar.plan.decisions import Precision, ScheduleName
from autopar.solve.candidate import Candidate, Job
from autopar.solve.light_cuts import are_long, light_cut
from autopar.solve.recipes import Recipes
from tests.solve.fake_choices import MILLION, FakeChoices, FakeKind


def taken_s(
    firsts: Sequence[int], seconds: Sequence[float], sent_s: Sequence[Sequence[float]], micro_batches: int
) -> float:
    """Of all micro-batches, as a cut is judged."""
    ends = [*firsts[1:], len(seconds)]
    sent = [of_block[end - 1] for of_block, end in zip(sent_s, ends, strict=False)]
    stages = [sum(seconds[first:end]) for first, end in zip(firsts, ends, strict=True)]
    slowest_s = max(stage + after for stage, after in zip(stages, [*sent, 0.0], strict=True))
    return (micro_batches - 1) * slowest_s + sum(sent)


@pytest.mark.parametrize("seed", range(60))
def test_a_light_cut_is_the_best_of_all(seed: int) -> None:
    rng = random.Random(seed)
    num_blocks = rng.randint(2, 9)
    num_stages = rng.randint(2, min(num_blocks, 4))
    seconds = [rng.uniform(0.1, 1.0) for _ in range(num_blocks)]
    sent_s = [[rng.choice((0.01, 0.3, 3.0)) for _ in range(num_blocks)] for _ in range(num_stages - 1)]
    micro_batches = rng.choice((1, 2, 8, 64))
    sizes = tuple(Bound(1, rng.choice((None, num_blocks - num_stages + 1))) for _ in range(num_stages))

    found = light_cut(seconds, sent_s, micro_batches, sizes)

    every = [(0, *cuts) for cuts in combinations(range(1, num_blocks), num_stages - 1)]
    assert found in every
    least_s = min(taken_s(firsts, seconds, sent_s, micro_batches) for firsts in every)
    assert taken_s(found, seconds, sent_s, micro_batches) == pytest.approx(least_s)


def test_a_light_cut_keeps_the_sizes_of_stages() -> None:
    sizes = (Bound(1), Bound(1, 1))
    assert light_cut([1.0] * 4, [[0.0, 9.0, 9.0, 9.0]], 1) == (0, 1)
    assert light_cut([1.0] * 4, [[0.0, 9.0, 9.0, 9.0]], 1, sizes) == (0, 3)
    assert light_cut([1.0] * 4, [[0.0, 9.0, 9.0, 9.0]], 1, (Bound(5), Bound(5))) is None


def test_of_long_chains_no_light_cut_is_looked_for() -> None:
    assert light_cut([1.0] * 100, [[1.0] * 100] * 7, 8) is None


def test_messages_are_long_beside_what_a_stage_takes() -> None:
    assert are_long((0, 2), [1.0] * 4, [[0.0, 0.5, 0.0, 0.0]])
    assert not are_long((0, 2), [1.0] * 4, [[9.0, 0.1, 9.0, 9.0]])


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_over_slow_links_a_recipe_is_cut_where_little_is_sent(micro_batches: int) -> None:
    """Of an even cut, the second block would send forty times what the third does."""
    heavy, light = (
        FakeKind(1e-3, 2.0, MILLION, MILLION, MILLION, size * MILLION, False, 1) for size in (40, 1)
    )
    choices = FakeChoices([heavy, light], (0, 0, 1, 1), ())
    slow = make_cluster(load_device("a100-sxm-80gb"), 2, 1)
    slow = replace(slow, network=replace(slow.network, bytes_per_s=2e9))
    candidate = Candidate(2, 1, 1, micro_batches, 1, (0, 0), ScheduleName.ONE_F_ONE_B, 1)
    firsts = []
    for cluster in (slow, make_cluster(load_device("a100-sxm-80gb"), 1, 2)):
        job = Job(cluster, Precision.BF16, "adamw", micro_batches, 80_000 * MILLION)
        tried = Recipes(choices.tables(1, 1, 1)).first_fitting(candidate, job)
        assert tried is not None
        firsts.append(tried.layout.first_blocks)
    assert firsts == [(0, 3), (0, 2)]
