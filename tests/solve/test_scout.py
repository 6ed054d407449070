"""A quick look at many candidates: what it promises, and the plans that its recipes are."""

import random
from itertools import pairwise

import pytest

from autopar.solve.candidates import candidates, families, meshes
from autopar.solve.recipes import Recipes, even_cut
from autopar.solve.scout import Scout
from autopar.solve.search import search
from tests.solve.fake_choices import random_case


@pytest.mark.parametrize("num_stages", [1, 2, 3, 5, 8])
def test_an_even_cut_leaves_no_stage_empty_and_none_far_above_its_share(num_stages: int) -> None:
    rng = random.Random(num_stages)
    seconds = [rng.uniform(0.5, 1.5) for _ in range(24)]

    first_blocks = even_cut(seconds, num_stages)

    ends = [*first_blocks[1:], len(seconds)]
    stages = [sum(seconds[first:end]) for first, end in zip(first_blocks, ends, strict=True)]
    assert first_blocks[0] == 0
    assert all(first < end for first, end in zip(first_blocks, ends, strict=True))
    assert max(stages) <= sum(seconds) / num_stages + 2 * max(seconds)


def test_an_even_cut_of_as_many_stages_as_blocks_is_every_block() -> None:
    assert even_cut([9.0, 0.1, 0.1, 0.1], 4) == (0, 1, 2, 3)


@pytest.mark.parametrize("seed", range(12))
def test_recipes_are_plans_that_fit_and_no_quicker_than_the_search(seed: int) -> None:
    case = random_case(random.Random(seed))
    space, job = case.space, case.job
    legal = list(meshes(job.cluster.num_devices, space.num_blocks, case.tensor_degrees, space.pins))
    found = search(case.choices, families(job.global_batch, legal, space.pins), space, job)
    tried = []
    for family in families(job.global_batch, legal, space.pins):
        for candidate in candidates(family, space):
            tables = case.choices.tables(family.tensor, family.micro_batch, candidate.tensor_stride)
            recipe = Recipes(tables).first_fitting(candidate, job)
            if recipe is not None:
                tried.append(recipe)

    assert all(recipe.prediction.fits for recipe in tried)
    if tried:
        assert found is not None
        assert min(recipe.step_s for recipe in tried) >= found.bound_s * (1 - 1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_a_look_ranks_what_it_saw(seed: int) -> None:
    case = random_case(random.Random(100 + seed))
    space, job = case.space, case.job
    legal = meshes(job.cluster.num_devices, space.num_blocks, case.tensor_degrees, space.pins)
    guesses = dict.fromkeys(families(job.global_batch, legal, space.pins), 1.0)

    promises = Scout(case.choices, space, job, lambda: False).look(guesses)

    assert all(one.step_s <= other.step_s for one, other in pairwise(promises))
    assert {promise.candidate.family for promise in promises} <= set(guesses)
