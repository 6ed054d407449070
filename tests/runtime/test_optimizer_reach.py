"""Updates that torch cannot make of tensors that are spread over ranks are refused; all others are made."""

import pytest

from tests.runtime.plans import GPT_TENSOR
from tests.runtime.world import Case, check, run_cases

PLANS = {
    "pipeline": {"pipeline": 2},
    "zero0": {"data": 2},
    "zero3": {"data": 2, "zero": 3},
    "tensor": {"tensor": 2, "lines": GPT_TENSOR},
    "optimizer-away": {"data": 2, "zero": 1, "offload": "optimizer"},
}
WHOLE = ("pipeline", "zero0")
PIECES = ("zero3", "tensor", "optimizer-away")


@pytest.fixture(scope="module")
def found():
    cases = [Case(name, "optimizer_bodies:updates", options=options) for name, options in PLANS.items()]
    return run_cases(2, cases)


@pytest.mark.parametrize("plan", WHOLE)
@pytest.mark.parametrize("name", ["Rprop", "SGD", "Adagrad", "AdamW"])
def test_updates_of_whole_parameters_are_those_of_one_process(found, plan, name):
    assert all(result[name] < 1e-9 for result in check(found[plan], 2))


@pytest.mark.parametrize("plan", PIECES)
def test_adamw_is_fused_on_pieces(found, plan):
    assert all(result["AdamW"] < 1e-9 for result in check(found[plan], 2))


@pytest.mark.parametrize("plan", PIECES)
def test_rprop_is_refused_on_pieces(found, plan):
    for result in check(found[plan], 2):
        assert result["Rprop"].startswith(
            "UsageError: Rprop writes to elements chosen by a mask, which torch"
        )
        assert result["Rprop"].endswith("such as AdamW, Adam or SGD, or a plan with zero 0 and mesh.tensor 1")


@pytest.mark.parametrize("plan", PIECES)
@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_fused_updates_of_pieces_that_torch_lacks_are_refused(found, plan, name):
    for result in check(found[plan], 2):
        assert result[name].startswith(f"UsageError: {name}(fused=True) has no form in torch for distributed")
        assert "leave fused=True out" in result[name]
