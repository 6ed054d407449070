"""A quick look at many candidates: what it promises, and the plans that its recipes are."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import make_cluster
from autopar.plan.decisions import Mesh, Precision, ScheduleName
from autopar.solve.candidate import Candidate, Job, MeshSolution
from autopar.solve.candidates import OuterPins, Space, candidates, families, meshes
from autopar.solve.mesh import best_of_tables, has_too_many_places
from autopar.solve.recipes import Recipes, even_cut
from autopar.solve.scout import Scout, lengthened_s, shortened
from autopar.solve.search import search
from tests.solve.fake_choices import MILLION, FakeChoices, FakeKind, random_case


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


@pytest.mark.parametrize(
    ("schedule", "virtual", "error"),
    [
        (ScheduleName.GPIPE, 1, 1e-9),
        (ScheduleName.ONE_F_ONE_B, 1, 1e-3),
        (ScheduleName.ZERO_BUBBLE, 1, 1e-3),
        (ScheduleName.ZBV, 2, 0.005),
        (ScheduleName.INTERLEAVED, 2, 0.02),
        (ScheduleName.INTERLEAVED, 3, 0.02),
    ],
)
@pytest.mark.parametrize("pipeline", [1, 2, 4, 8])
def test_a_shortened_schedule_tells_the_step_of_the_long_one(
    schedule: ScheduleName, virtual: int, error: float, pipeline: int
) -> None:
    if pipeline == 1 and virtual > 1:
        pytest.skip("a rank that holds all stages has one")
    rng = random.Random(pipeline)
    kinds = [
        FakeKind(rng.uniform(1e-3, 3e-3), 2.0, MILLION, MILLION, MILLION, 40 * MILLION, True, 1)
        for _ in range(24)
    ]
    choices = FakeChoices(kinds, tuple(range(24)), ())
    cluster = make_cluster(load_device("a100-sxm-80gb"), 2 * pipeline, 2 * pipeline)
    job = Job(cluster, Precision.BF16, "adamw", 256, cluster.device.memory_bytes)
    levels = (1,) * (pipeline * virtual)
    whole = Candidate(pipeline, 1, 2, 128, 1, levels, schedule, virtual)
    recipes = Recipes(choices.tables(1, 1, 1))

    short, left = shortened(whole)
    tried, expected = recipes.first_fitting(short, job), recipes.first_fitting(whole, job)

    assert tried is not None
    assert expected is not None
    assert left > 0
    assert short.num_micro_batches + left == 128
    assert lengthened_s(tried, left, job) == pytest.approx(expected.step_s, rel=error)


@pytest.mark.parametrize("seed", range(6))
def test_a_look_ranks_what_it_saw(seed: int) -> None:
    case = random_case(random.Random(100 + seed))
    space, job = case.space, case.job
    legal = meshes(job.cluster.num_devices, space.num_blocks, case.tensor_degrees, space.pins)
    guesses = dict.fromkeys(families(job.global_batch, legal, space.pins), 1.0)

    promises = Scout(case.choices, space, job, lambda: False).look(guesses)

    assert all(one.step_s <= other.step_s for one, other in pairwise(promises))
    assert {promise.candidate.family for promise in promises} <= set(guesses)


class _MostlyLaunches(FakeChoices):
    """Blocks whose operators take about as long of eight samples as of one."""

    def floor_s(self, tensor: int, micro_batch: int) -> float:
        return sum(self.kinds[kind].seconds for kind in self.blocks) * micro_batch / tensor


@pytest.mark.parametrize("tensor", [1, 2])
def test_a_look_knows_what_does_not_grow_with_the_samples(tensor: int) -> None:
    kinds = [FakeKind(2e-6, 2.0, MILLION, 1_000, 1_000, 1_000, False, 1)]
    choices = _MostlyLaunches(kinds, (0,) * 8, ())
    cluster = make_cluster(load_device("a100-sxm-80gb"), 1, 2 * tensor)
    job = Job(cluster, Precision.BF16, "adamw", 8, cluster.device.memory_bytes)
    pins = OuterPins(Mesh(2, 1, tensor))
    space = Space(pins, 8, 1, 2 * tensor)
    legal = list(families(8, [Mesh(2, 1, tensor)], pins))
    guesses = dict.fromkeys(legal, 1e-6)

    promises = Scout(choices, space, job, lambda: False).look(guesses)

    assert [family.micro_batch for family in legal] == [1, 2, 4, 8]
    assert promises[0].candidate.micro_batch == 8
    for promise in promises:
        tables = choices.tables(tensor, promise.candidate.micro_batch)
        recipe = Recipes(tables).first_fitting(promise.candidate, job)
        assert recipe is not None
        assert promise.step_s == pytest.approx(recipe.step_s, rel=0.05)


def test_where_nothing_fits_without_offloading_a_look_finds_what_does_with_it() -> None:
    cluster = make_cluster(load_device("l4-24gb"), 2, 2)
    job = Job(cluster, Precision.BF16, "adamw", 16, cluster.device.framework_reserved_bytes + 2_500 * MILLION)
    choices = FakeChoices(
        [FakeKind(1e-3, 2.0, 100 * MILLION, 5 * MILLION, MILLION, MILLION, True, 1)], (0,) * 8, ()
    )
    pins = OuterPins(Mesh())
    space = Space(pins, 8, 2, 2)
    legal = list(families(16, meshes(4, 8, (1,), pins), pins))
    guesses = {f: choices.floor_s(1, f.micro_batch) * f.num_micro_batches / f.pipeline for f in legal}

    promises = Scout(choices, space, job, lambda: False).look(guesses)

    every = [
        (recipe.step_s, bool(candidate.offload))
        for family in legal
        for candidate in candidates(family, space)
        if (recipe := Recipes(choices.tables(1, family.micro_batch)).first_fitting(candidate, job))
        is not None
    ]
    assert every and all(is_offloaded for _, is_offloaded in every)
    assert promises and all(promise.candidate.offload for promise in promises)
    assert promises[0].step_s <= 1.1 * min(step_s for step_s, _ in every)


def test_of_very_many_virtual_stages_a_plan_is_a_recipe() -> None:
    """A chain problem of them takes minutes."""
    kinds = [FakeKind(1e-3, 2.0, MILLION, MILLION, MILLION, MILLION, True, 1)]
    choices = FakeChoices(kinds, (0,) * 100, ())
    cluster = make_cluster(load_device("a100-sxm-80gb"), 32, 32)
    job = Job(cluster, Precision.BF16, "adamw", 64, cluster.device.memory_bytes)
    many = Candidate(32, 1, 1, 64, 1, (0,) * 64, ScheduleName.INTERLEAVED, 2)
    tables = choices.tables(1, 1, 1)

    found, simple = best_of_tables(tables, many, job), Recipes(tables).first_fitting(many, job)

    assert has_too_many_places(many, 100)
    assert not has_too_many_places(replace(many, virtual=1, zero=(0,) * 32), 100)
    assert isinstance(found, MeshSolution)
    assert simple is not None
    assert found.step_s == simple.step_s
    assert found.layout == simple.layout
    assert 0 < found.bound_s <= found.step_s


@pytest.mark.parametrize(("device", "on_one_rank"), [("l4-24gb", True), ("h100-sxm-80gb", False)])
def test_a_v_shaped_pipeline_shares_parameters_within_a_rank_where_links_are_slow(
    device: str, on_one_rank: bool
) -> None:
    """Stages of even times would hold the sixth of eight blocks, which shares its parameter with the first,
    on the other rank."""
    kinds = [FakeKind(2e-3, 2.0, 200 * MILLION, MILLION, MILLION, MILLION, False, 1) for _ in range(8)]
    choices = FakeChoices(kinds, tuple(range(8)), (0, 5))
    cluster = (
        make_cluster(load_device(device), 2, 1) if on_one_rank else make_cluster(load_device(device), 1, 2)
    )
    job = Job(cluster, Precision.BF16, "adamw", 16, 80_000 * MILLION)
    candidate = Candidate(2, 1, 1, 16, 1, (0,) * 4, ScheduleName.ZBV, 2)

    tried = Recipes(choices.tables(1, 1, 1)).first_fitting(candidate, job)

    assert tried is not None
    (shared,) = tried.layout.shared
    ranks = {0: 0, 1: 1, 2: 1, 3: 0}
    assert (len({ranks[stage] for stage in tried.layout.holders(shared)}) == 1) is on_one_rank


@pytest.mark.parametrize("seed", range(40))
def test_a_recipe_is_no_slower_for_trying_a_second_cut(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(300 + seed)
    case = random_case(rng)
    pins = OuterPins(Mesh(), schedule=ScheduleName.ZBV)
    space = replace(case.space, pins=pins)
    legal = meshes(case.job.cluster.num_devices, space.num_blocks, case.tensor_degrees, pins)
    every = [c for f in families(case.job.global_batch, legal, pins) for c in candidates(f, space)]
    tables = {c: case.choices.tables(c.tensor, c.micro_batch, c.tensor_stride) for c in every}
    both = {c: Recipes(tables[c]).first_fitting(c, case.job) for c in every}
    monkeypatch.setattr("autopar.solve.recipes.with_ties_on_one_rank", lambda firsts, *rest: firsts)
    for candidate, found in both.items():
        even = Recipes(tables[candidate]).first_fitting(candidate, case.job)
        assert even is None or (found is not None and found.step_s <= even.step_s)
