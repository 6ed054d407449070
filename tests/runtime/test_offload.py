"""What lives in host memory: what the optimiser changes, shards, activations; equal to one process."""

import pytest

from tests.runtime.expect import assert_clipped, assert_close, assert_equal
from tests.runtime.plans import GPT_TENSOR
from tests.runtime.world import Case, check, run_cases

TENSOR = {"tensor": 2, "lines": GPT_TENSOR, "activations": "sequence"}
PLANS = {
    "optimizer-pipeline": {"pipeline": 2, "offload": "optimizer"},
    "optimizer-zero0": {"data": 2, "offload": "optimizer"},
    "optimizer-zero3": {"data": 2, "zero": 3, "offload": "optimizer"},
    "optimizer-tensor": {**TENSOR, "offload": "optimizer"},
    "parameters": {"data": 2, "zero": 3, "offload": "parameters"},
    "parameters-alone": {"pipeline": 2, "zero": 3, "offload": "parameters"},
    "parameters-tensor": {**TENSOR, "zero": 3, "offload": "parameters"},
    "activations-pipeline": {"pipeline": 2, "offload": "activations", "num_micro_batches": 3},
    "activations-zero3": {"data": 2, "zero": 3, "offload": "activations"},
    "activations-tensor": {**TENSOR, "offload": "activations"},
    "activations-full": {"pipeline": 2, "offload": "activations", "recompute": "full"},
    "activations-selective": {**TENSOR, "offload": "activations", "recompute": "selective"},
    "activations-zero-bubble": {"pipeline": 2, "offload": "activations", "schedule": "zero-bubble"},
    "everything": {"data": 2, "zero": 3, "offload": "optimizer,parameters,activations"},
}
STEPPED = [name for name in PLANS if not name.startswith("activations")]
WHOLE = ("optimizer-pipeline", "optimizer-zero3", "parameters-tensor", "everything")
HALF = ("optimizer-zero0", "optimizer-zero3", "parameters", "activations-zero3")


def surface(name):
    return Case(f"surface-{name}", "surface", options=PLANS[name])


TWO = [
    *(Case(name, "verify", options={**options, "num_steps": 1}) for name, options in PLANS.items()),
    *(Case(f"clip-{name}", "clip", options=PLANS[name]) for name in STEPPED),
    *(surface(name) for name in WHOLE),
    *(
        Case(
            f"half-{name}",
            "precision_bodies:half",
            dtype="bfloat16",
            options={**PLANS[name], "precision": "bf16"},
        )
        for name in HALF
    ),
    Case(
        "batchnorm-lstm",
        "verify",
        model="perception",
        options={"pipeline": 2, "offload": "activations,optimizer"},
    ),
]


@pytest.mark.parametrize("name", [*PLANS, "batchnorm-lstm"])
def test_two_ranks_equal_one_process(two, name):
    assert_equal(two[name], 2)


@pytest.mark.parametrize("name", STEPPED)
def test_updates_and_clipping_equal_one_process(two, name):
    assert_clipped(two[f"clip-{name}"], 2)


def assert_whole(results):
    for result in check(results, 2):
        assert result["accumulated"] < 1e-12
        assert result["state"] == 0.0


@pytest.mark.parametrize("name", WHOLE)
def test_gradients_add_up_and_the_state_is_whole(two, name):
    assert_whole(two[f"surface-{name}"])


@pytest.mark.slow
def test_gradients_add_up_and_the_state_is_whole_under_the_other_plans():
    for results in run_cases(2, [surface(name) for name in STEPPED if name not in WHOLE]).values():
        assert_whole(results)


@pytest.mark.parametrize("name", HALF)
def test_bf16_keeps_what_the_optimiser_sees_in_float32(two, name):
    assert_close(two[f"half-{name}"], 2)
