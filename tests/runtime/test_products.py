"""Every combination of the axes trains as one process does: loss and every gradient, in float64."""

from itertools import product

import pytest

from tests.runtime.expect import assert_equal, assert_statistics_equal
from tests.runtime.plans import GPT_TENSOR
from tests.runtime.world import Case, run_cases

TENSOR = {"tied_gpt": GPT_TENSOR, "encoder_decoder": (), "perception": (("stages.*.conv", "column"),)}


def case(name, model="tied_gpt", **options):
    if options.get("tensor", 1) > 1:
        options.setdefault("lines", TENSOR[model])
    return Case(name, "verify", model=model, options=options, micro_batch=options.pop("micro_batch", 2))


TWO = [
    case("data-zero0", data=2, recompute="full"),
    case("data-zero3", data=2, zero=3),
    case("pipeline-gpipe-m1", pipeline=2, schedule="gpipe", num_micro_batches=1),
    case("pipeline-1f1b-uneven", pipeline=2, num_micro_batches=5, cuts=[5], recompute="full"),
    case("tensor", tensor=2),
    case("tensor-sequence-recompute", tensor=2, activations="sequence", recompute="full"),
    case("skips-pipeline", model="encoder_decoder", pipeline=2, num_micro_batches=3, recompute="full"),
    case("skips-data-zero3", model="encoder_decoder", data=2, zero=3),
    case("batchnorm-lstm-pipeline", model="perception", pipeline=2, num_micro_batches=3, recompute="full"),
    case("batchnorm-lstm-data-zero3", model="perception", data=2, zero=3, recompute="full"),
    case("batchnorm-lstm-tensor", model="perception", tensor=2),
]
FOUR = [
    case("data4-zero1", data=4, zero=1),
    case("data4-zero2", data=4, zero=2, num_micro_batches=3),
    case("data4-zero3-uneven", model="perception", data=4, zero=3),
    case("pipeline4-1f1b", pipeline=4, num_micro_batches=6),
    case("pipeline4-1f1b-m2", pipeline=4, num_micro_batches=2),
    case("pipeline4-gpipe", pipeline=4, schedule="gpipe", num_micro_batches=3),
    case("pipeline4-skips", model="encoder_decoder", pipeline=4, num_micro_batches=5, recompute="full"),
    case("tensor4-batch", tensor=4, activations="batch", micro_batch=4),
    case("pipeline-data-zero3", pipeline=2, data=2, zero=3, num_micro_batches=3, recompute="full"),
    case("pipeline-data-mixed-zero", pipeline=2, data=2, zero=(0, 3), num_micro_batches=3),
    case("pipeline-tensor-sequence", pipeline=2, tensor=2, activations="sequence"),
    case("data-tensor-zero3", data=2, tensor=2, zero=3, activations="sequence"),
    case("data-tensor-zero0", data=2, tensor=2),
]
EIGHT = [
    case("all-zero3", pipeline=2, data=2, tensor=2, zero=3, activations="sequence", num_micro_batches=3),
    case("all-zero0", pipeline=2, data=2, tensor=2, recompute="full", schedule="gpipe"),
]
WIDE = [
    case(
        "-".join(map(str, (model, *mesh, schedule, zero, recompute, words))),
        model=model,
        pipeline=mesh[0],
        data=mesh[1],
        tensor=mesh[2],
        schedule=schedule,
        zero=zero,
        recompute=recompute,
        activations=words,
        num_micro_batches=3,
    )
    for model, mesh, schedule, zero, recompute, words in product(
        TENSOR,
        ((4, 1, 1), (1, 4, 1), (1, 1, 4), (2, 2, 1), (2, 1, 2), (1, 2, 2)),
        ("gpipe", "1f1b"),
        (0, 3),
        ("none", "full"),
        ("replicate", "sequence"),
    )
    if (mesh[0] > 1 or schedule == "1f1b")
    and (mesh[1] > 1 or not zero)
    and (mesh[2] > 1 or words == "replicate")
]


@pytest.mark.parametrize("name", [x.name for x in TWO])
def test_two_ranks_equal_one_process(two, name):
    assert_equal(two[name], 2)


def test_batchnorm_statistics_advance_once_under_recompute(two):
    assert_statistics_equal(two["batchnorm-lstm-pipeline"], 2)


@pytest.mark.parametrize("name", [x.name for x in FOUR])
def test_four_ranks_equal_one_process(four, name):
    assert_equal(four[name], 4)


@pytest.mark.slow  # the default run has others: tests/verify/test_combinations.py
def test_eight_ranks_equal_one_process():
    found = run_cases(8, EIGHT)
    for name in found:
        assert_equal(found[name], 8)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_wide_product_equals_one_process():
    wrong = []
    for begin in range(0, len(WIDE), 24):
        found = run_cases(4, WIDE[begin : begin + 24])
        for name, results in found.items():
            try:
                assert_equal(results, 4)
            except AssertionError as error:
                wrong.append((name, str(error)[:2000]))
    assert not wrong
