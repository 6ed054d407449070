"""``eval_step`` equals the plain model in evaluation mode, and leaves the training as it was."""

import pytest

from tests.runtime.plans import GPT_TENSOR
from tests.runtime.world import Case, check, run_cases

PLANS = {
    "pipeline": {"pipeline": 2},
    "tensor": {"tensor": 2, "lines": GPT_TENSOR, "activations": "sequence", "recompute": "full"},
    "zero1": {"data": 2, "zero": 1},
    "zero3": {"data": 2, "zero": 3},
    "zbv": {"schedule": "zbv", "virtual": 2, "pipeline": 2},
    "zero-bubble": {"schedule": "zero-bubble", "pipeline": 2, "num_micro_batches": 3},
    "interleaved-zero2": {"schedule": "interleaved", "virtual": 2, "data": 2, "zero": 2},
}


def case(name, **keywords):
    return Case(name, "evaluation", extra={"num_micro_batches": 3}, **keywords)


CASES = [
    *(case(name, options=options) for name, options in PLANS.items()),
    *(
        case(f"dropout-{name}", args={"dropout": 0.3}, options=PLANS[name])
        for name in ("pipeline", "tensor", "zero3")
    ),
    *(
        case(f"shared-entries-{name}", model="graph_net", options=PLANS[name])
        for name in ("pipeline", "zero1", "zero3", "interleaved-zero2")
    ),
    case(
        "shared-entries-tensor",
        model="graph_net",
        options={"tensor": 2, "lines": (("layers.*", "column"), ("*", "replicate"))},
    ),
    *(
        Case(f"inference-{name}", "inference_mode", options=PLANS[name])
        for name in ("pipeline", "tensor", "zero3")
    ),
    *(case(f"batchnorm-{name}", model="perception", options=PLANS[name]) for name in ("pipeline", "zbv")),
]


@pytest.fixture(scope="module")
def found():
    return run_cases(2, CASES)


@pytest.mark.parametrize("name", [x.name for x in CASES if x.body == "evaluation"])
def test_eval_step_equals_the_plain_model(found, name):
    for result in check(found[name], 2):
        assert result["error"] < 1e-9
        assert result["buffers"] == 0.0 and result["rng"]


@pytest.mark.parametrize("name", [x.name for x in CASES if x.body == "inference_mode"])
def test_inference_mode_is_as_no_grad_and_training_goes_on(found, name):
    assert max(check(found[name], 2)) < 1e-9


def test_a_batch_that_does_not_fit_is_refused(found):
    for result in check(found["pipeline"], 2):
        empty, short = result["misuse"]
        assert empty == "UsageError: eval_step(): the batch holds none of the model's entries tokens, labels"
        assert short.startswith(
            "UsageError: eval_step(): batch['tokens'] has shape (1, 8); dim 0 must be a mul"
        )
