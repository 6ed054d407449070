"""Cuts moved until they fit, against all cuts of made-up chains."""

import itertools
import random
from collections.abc import Callable

import pytest

from autopar.cost.layout import Layout
from autopar.cost.step import fits
from autopar.solve.candidate import Candidate
from autopar.solve.chain_build import chosen_stages, layout_of
from autopar.solve.shifted_cuts import shifted
from tests.solve.brute_force import settings
from tests.solve.fake_choices import FakeCase, FakeChoices, random_case

Cut = tuple[int, ...]


def drawn(seed: int) -> tuple[FakeCase, int, Callable[[Cut], Layout]]:
    """A case, a number of stages, and the layout of a cut under the first options."""
    rng = random.Random(seed)
    while True:
        case = random_case(rng)
        case.choices = FakeChoices(case.choices.kinds, tuple(sorted(case.choices.blocks * 2)), ())
        found = [one for one in settings(case) if stages_of(one) > 1]
        if found:
            break
    (p, t, d), b, order, name, v, level, group, offload = rng.choice(found)
    candidate = Candidate(
        p, t, d, case.job.global_batch // (d * b), b, (level,) * (p * v), name, v, order, group, offload
    )
    table = case.choices._table(t, b, candidate.tensor_stride)
    options = (0,) * len(table.blocks)
    return case, p * v, lambda cut: layout_of(candidate, case.job, table, chosen_stages(table, cut, options))


def stages_of(setting: tuple) -> int:
    (pipeline, _, _), _, _, _, virtual, *_ = setting
    return pipeline * virtual


def cuts(num_blocks: int, num_stages: int) -> list[Cut]:
    return [(0, *rest) for rest in itertools.combinations(range(1, num_blocks), num_stages - 1)]


@pytest.mark.parametrize("seed", range(60))
def test_what_is_found_fits_and_of_two_stages_it_is_found(seed: int) -> None:
    case, num_stages, layout_at = drawn(seed)
    num_blocks, job = len(case.choices.blocks), case.job
    fitting = [
        cut
        for cut in cuts(num_blocks, num_stages)
        if fits(layout_at(cut), job.cluster, job.memory_limit_bytes)
    ]
    for start in cuts(num_blocks, num_stages):
        found = shifted(start, num_blocks, job, layout_at)
        if found is not None:
            sizes = [len(stage) for stage in found.stages]
            assert (0, *itertools.accumulate(sizes))[:-1] in fitting
        elif num_stages == 2:
            assert not fitting
