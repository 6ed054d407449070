"""Memory that a plan of several stages a rank leaves free is spent on quicker options, and none beyond."""

import random

import pytest

from autopar.cost.layout import Layout
from autopar.cost.step import fits
from autopar.solve.candidate import Candidate, ChoiceTable, Job
from autopar.solve.chain_build import chosen_stages, layout_of
from autopar.solve.recipes import even_cut
from autopar.solve.spare_memory import with_memory_spent
from tests.solve.brute_force import settings
from tests.solve.fake_choices import random_case


def leanest(table: ChoiceTable, candidate: Candidate, job: Job) -> Layout:
    """Even stages of the options that save least."""
    options = [
        min(range(len(table.kinds[kind])), key=lambda index: table.kinds[kind][index].saved_bytes)
        for kind in table.blocks
    ]
    firsts = even_cut([1.0] * len(table.blocks), candidate.num_stages)
    return layout_of(candidate, job, table, chosen_stages(table, firsts, options))


def cases(seed: int) -> list[tuple[Layout, ChoiceTable, Job]]:
    rng = random.Random(seed)
    case = random_case(rng)
    several = [setting for setting in settings(case) if setting[4] > 1]
    found = []
    for (p, t, d), b, order, name, v, level, group, offload in rng.sample(several, min(8, len(several))):
        num = case.job.global_batch // (d * b)
        candidate = Candidate(p, t, d, num, b, (level,) * (p * v), name, v, order, group, offload)
        table = case.choices._table(t, b, candidate.tensor_stride)
        found.append((leanest(table, candidate, case.job), table, case.job))
    return found


@pytest.mark.parametrize("seed", range(0, 60, 10))
def test_what_is_spent_fits_and_makes_no_block_slower(seed: int) -> None:
    quicker = 0
    for layout, table, job in (one for near in range(10) for one in cases(seed + near)):
        spent = with_memory_spent(layout, table, job)
        assert spent.first_blocks == layout.first_blocks
        if not fits(layout, job.cluster, job.memory_limit_bytes):
            assert spent is layout
            continue
        assert fits(spent, job.cluster, job.memory_limit_bytes)
        before, after = (
            [c.forward_s + c.backward_s for stage in one.stages for c in stage] for one in (layout, spent)
        )
        assert all(new <= old for old, new in zip(before, after, strict=True))
        quicker += sum(after) < sum(before)
    assert quicker > 0


def test_without_a_limit_every_block_takes_its_quickest_option() -> None:
    checked = 0
    for layout, table, job in (one for seed in range(30) for one in cases(seed)):
        if not fits(layout, job.cluster, 10**15):
            continue
        free = Job(job.cluster, job.precision, job.optimizer, job.global_batch, 10**15)
        spent = with_memory_spent(layout, table, free)
        chosen = [choice for stage in spent.stages for choice in stage]
        for block, (choice, kind) in enumerate(zip(chosen, table.blocks, strict=True)):
            before = [c for stage in layout.stages for c in stage][block]
            alike = [
                c.forward_s + c.backward_s
                for c in table.kinds[kind]
                if (c.input_word, c.output_word, c.output_bytes, c.parameters)
                == (before.input_word, before.output_word, before.output_bytes, before.parameters)
            ]
            assert choice.forward_s + choice.backward_s == min(alike)
            checked += 1
    assert checked > 100
