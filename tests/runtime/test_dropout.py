"""Random operators: one mask per value wherever it is computed, repeated under recompute."""

import pytest

from tests.runtime.plans import GPT_TENSOR
from tests.runtime.world import Case, check, run_cases

PLANS = {
    "pipeline": {"pipeline": 2},
    "pipeline-recompute": {"pipeline": 2, "recompute": "full", "schedule": "gpipe"},
    "tensor": {"tensor": 2, "lines": GPT_TENSOR},
    "tensor-recompute": {"tensor": 2, "lines": GPT_TENSOR, "recompute": "full"},
    "sequence": {"tensor": 2, "lines": GPT_TENSOR, "activations": "sequence"},
    "sequence-recompute": {"tensor": 2, "lines": GPT_TENSOR, "activations": "sequence", "recompute": "full"},
    "pipeline-selective": {"pipeline": 2, "recompute": "selective"},
    "sequence-selective": {
        "tensor": 2,
        "lines": GPT_TENSOR,
        "activations": "sequence",
        "recompute": "selective",
    },
    "data": {"data": 2, "num_micro_batches": 1},
    "data-zero3": {"data": 2, "num_micro_batches": 1, "zero": 3, "recompute": "full"},
}


@pytest.fixture(scope="module")
def found():
    args = {"dropout": 0.2}
    cases = [Case(name, "dropout", args=args, options=options) for name, options in PLANS.items()]
    return run_cases(2, [*cases, Case("same", "same_samples", args=args, options={"data": 2})])


def assert_same(one, other):
    assert one["first"] == pytest.approx(other["first"], rel=1e-12)
    assert one["checksum"] == pytest.approx(other["checksum"], rel=1e-9, abs=1e-18)


@pytest.mark.parametrize("name", ["pipeline", "tensor", "sequence", "data"])
def test_recompute_repeats_the_masks(found, name):
    again = {"data": "data-zero3"}.get(name, f"{name}-recompute")
    assert_same(check(found[name], 2)[0], check(found[again], 2)[0])


@pytest.mark.parametrize("name", ["pipeline", "sequence"])
def test_selective_recompute_repeats_the_masks(found, name):
    assert_same(check(found[name], 2)[0], check(found[f"{name}-selective"], 2)[0])


@pytest.mark.parametrize("name", ["tensor", "data"])
def test_masks_do_not_depend_on_the_plan(found, name):
    assert_same(check(found["pipeline"], 2)[0], check(found[name], 2)[0])


@pytest.mark.parametrize("name", PLANS)
def test_every_step_draws_anew_and_all_ranks_agree(found, name):
    results = check(found[name], 2)
    assert results[0]["first"] != results[0]["second"]
    assert [results[0][key] for key in ("first", "second")] == [
        results[1][key] for key in ("first", "second")
    ]


@pytest.mark.parametrize("name", [name for name in PLANS if "tensor" in name or "sequence" in name])
def test_replicas_of_a_value_have_the_same_mask(found, name):
    assert all(result["drift"] == 0.0 for result in check(found[name], 2))


def test_data_ranks_draw_independently(found):
    losses = check(found["same"], 2)[0]
    assert losses[0] != losses[1]
