"""Replicated gradients are averaged while the last backward pass goes on, and are right."""

import pytest

from tests.runtime.plans import GPT_TENSOR
from tests.runtime.world import Case, check, run_cases

INTERLEAVED = {"schedule": "interleaved", "virtual": 2, "num_micro_batches": 4}
TWO = {
    "data": {"data": 2, "num_micro_batches": 3},
    "recompute": {"data": 2, "recompute": "full"},
    "offload": {"data": 2, "offload": "optimizer"},
}
FOUR = {
    "tensor": {"data": 2, "tensor": 2, "lines": GPT_TENSOR, "activations": "sequence"},
    "pipeline": {"pipeline": 2, "data": 2},
    "interleaved": {"pipeline": 2, "data": 2, **INTERLEAVED},
    "zero-bubble": {"pipeline": 2, "data": 2, "schedule": "zero-bubble"},
}


def cases(plans):
    return [Case(name, "overlap", options=options) for name, options in plans.items()]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("scale") / "checkpoint")
    half = [
        Case(
            "half",
            "precision_bodies:half",
            dtype="bfloat16",
            options={**TWO["data"], "precision": "bf16"},
        ),
        Case(
            "scale",
            "checkpoint_bodies:loss_scale",
            dtype="float16",
            options={"data": 2, "precision": "fp16"},
            extra={"path": path},
        ),
    ]
    return {**run_cases(2, cases(TWO) + half), **run_cases(4, cases(FOUR))}


@pytest.mark.parametrize("name", [*TWO, *FOUR])
def test_gradients_equal_one_process(found, name):
    for result in check(found[name], 2 if name in TWO else 4):
        assert result["error"] < 1e-12


@pytest.mark.parametrize("name", [*TWO, "tensor", "pipeline"])
def test_buckets_are_sent_before_the_backward_pass_ends(found, name):
    for result in check(found[name], 2 if name in TWO else 4):
        assert result["num_buckets"] > 1
        assert result["early"] == [result["num_buckets"]]


def test_split_backward_passes_wait(found):
    assert all(result["early"] == [0] for result in check(found["zero-bubble"], 4))


def test_copies_in_half_precision_are_averaged_as_they_come(found):
    for result in check(found["half"], 2):
        assert result["dtypes"] == ["torch.float32"]
        assert result["loss"] < 0.01 and result["gradient"] < 0.02


def test_the_loss_scale_goes_on_from_a_checkpoint(found):
    assert check(found["scale"], 2) == [(2.0**15, 2.0**14)] * 2
