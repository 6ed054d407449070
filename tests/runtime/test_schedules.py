"""Interleaved and zero-bubble schedules train as one process does: loss and every gradient, in float64."""

import pytest

from tests.runtime.plans import GPT_TENSOR
from tests.runtime.test_products import assert_equal
from tests.runtime.world import Case, run_cases

VIRTUAL = {"interleaved": 2, "zero-bubble": 1, "zbv": 2}


def case(name, model="tied_gpt", body="verify", micro_batch=2, **options):
    if options.get("tensor", 1) > 1 and model == "tied_gpt":
        options.setdefault("lines", GPT_TENSOR)
    options.setdefault("virtual", VIRTUAL[options["schedule"]])
    options.setdefault("num_steps", 1)
    return Case(name, body, model=model, options=options, micro_batch=micro_batch)


def each(name, model="tied_gpt", **options):
    return [case(f"{name}-{schedule}", model, schedule=schedule, **options) for schedule in VIRTUAL]


TWO = [
    *(x for m in (1, 2, 3, 5) for x in each(f"m{m}", pipeline=2, num_micro_batches=m)),
    *each("recompute", pipeline=2, num_micro_batches=3, recompute="full", num_steps=2),
    *each("skips", "encoder_decoder", pipeline=2, num_micro_batches=3),
    *each("batchnorm-lstm", "perception", pipeline=2, num_micro_batches=4, num_steps=2, recompute="full"),
    *(
        x
        for zero in (0, 1, 2, 3)  # the tied embedding and head are on one rank
        for x in each(f"one-rank-zero{zero}", data=2, zero=zero, num_micro_batches=3, num_steps=2)
    ),
    case("interleaved-v3", schedule="interleaved", pipeline=2, virtual=3, num_micro_batches=4),
]
FOUR = [
    *(x for m in (2, 6) for x in each(f"p4-m{m}", "encoder_decoder", pipeline=4, num_micro_batches=m)),
    *each("tensor", pipeline=2, tensor=2, activations="sequence", num_micro_batches=3),
    *(
        x
        for zero in (0, 1, 2, 3)
        for x in each(f"zero{zero}", pipeline=2, data=2, zero=zero, num_micro_batches=3, num_steps=2)
    ),
    *each("zero-recompute", pipeline=2, data=2, zero=2, num_micro_batches=3, recompute="full"),
]


@pytest.fixture(scope="module")
def two():
    return run_cases(2, TWO)


@pytest.fixture(scope="module")
def four():
    return run_cases(4, FOUR)


@pytest.mark.parametrize("name", [x.name for x in TWO])
def test_two_ranks_equal_one_process(two, name):
    assert_equal(two[name], 2)


@pytest.mark.parametrize("name", [x.name for x in FOUR])
def test_four_ranks_equal_one_process(four, name):
    assert_equal(four[name], 4)
