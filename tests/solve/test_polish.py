"""Small changes of a plan against all small changes, listed apart."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from autopar.cost.choice import BlockChoice
from autopar.cost.step import predict
from autopar.solve.candidate import Candidate, ChoiceTable, MeshSolution
from autopar.solve.chain_build import chosen_stages, layout_of
from autopar.solve.polish import polished
from tests.solve.brute_force import settings
from tests.solve.fake_choices import FakeCase, random_case

Options = tuple[int, ...]


def solution_of(
    case: FakeCase, candidate: Candidate, table: ChoiceTable, firsts: Options, options: Options
) -> MeshSolution:
    stages = chosen_stages(table, firsts, options)
    layout = layout_of(candidate, case.job, table, stages)
    prediction = predict(layout, case.job.cluster, case.job.memory_limit_bytes)
    chosen: tuple[BlockChoice, ...] = tuple(itertools.chain(*stages))
    return MeshSolution(candidate, layout, chosen, prediction, 0.0, 0)


def plans(table: ChoiceTable, num_stages: int) -> Iterator[tuple[Options, Options]]:
    """Every cut with every choice of options whose words meet."""
    for options in itertools.product(*(range(len(table.kinds[kind])) for kind in table.blocks)):
        chosen = [table.kinds[kind][option] for kind, option in zip(table.blocks, options, strict=True)]
        words = [("replicate", chosen[0].input_word), (chosen[-1].output_word, "replicate")]
        words += [(a.output_word, b.input_word) for a, b in itertools.pairwise(chosen)]
        if all(one == other for one, other in words):
            for cuts in itertools.combinations(range(1, len(table.blocks)), num_stages - 1):
                yield (0, *cuts), options


@pytest.mark.parametrize("seed", range(24))
def test_no_small_change_of_a_polished_plan_is_quicker(seed: int) -> None:
    rng = random.Random(seed)
    case = next(case for case in iter(lambda: random_case(rng), None) if any(settings(case)))
    (p, t, d), b, order, name, v, level, group, offload = rng.choice(list(settings(case)))
    candidate = Candidate(
        p, t, d, case.job.global_batch // (d * b), b, (level,) * (p * v), name, v, order, group, offload
    )
    table = case.choices._table(t, b, candidate.tensor_stride)
    everything = [solution_of(case, candidate, table, *plan) for plan in plans(table, p * v)]
    start = rng.choice(everything)

    found = polished(start, table, case.job)

    assert found.step_s <= start.step_s
    assert found.prediction.fits or found.layout == start.layout
    near = [other for other in everything if is_near(other, found) and other.prediction.fits]
    assert all(other.step_s >= found.step_s * (1 - 1e-9) for other in near)
    assert replace(found, layout=start.layout, choices=start.choices, prediction=start.prediction) == start


def is_near(one: MeshSolution, other: MeshSolution) -> bool:
    """Whether one block has another option, or one boundary lies a block further."""
    lengths = [[len(stage) for stage in found.layout.stages] for found in (one, other)]
    moved = [abs(a - b) for a, b in zip(*map(itertools.accumulate, lengths), strict=True)]
    changed = [a is not b for a, b in zip(one.choices, other.choices, strict=True)]
    words = [
        (a.input_word, a.output_word) == (b.input_word, b.output_word)
        for a, b in zip(one.choices, other.choices, strict=True)
    ]
    return all(words) and sum(moved) + sum(changed) <= 1
