"""What counts as a difference."""

import pytest
import torch

from autopar.errors import DifferenceError
from autopar.verify.compare import Comparison, relative_error
from autopar.verify.report import VerifyReport


def report(**changes):
    fields = {
        "num_steps": 2,
        "tolerance": 1e-9,
        "worst_loss_error": 0.0,
        "worst_gradient_error": 1e-15,
        "worst_parameter": "head.weight",
    }
    return VerifyReport(**{**fields, **changes})


def compare(found, expected):
    comparison = Comparison()
    comparison.add_gradients(found.items(), expected)
    return comparison


def test_errors_are_relative_to_the_parameters_own_gradient():
    comparison = compare(
        {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.11])},
        {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.1])},
    )
    assert comparison.worst_parameter == "b"
    assert comparison.worst_gradient_error == pytest.approx(0.1)


def test_a_gradient_that_is_zero_but_for_rounding_is_measured_by_the_others():
    comparison = compare(
        {"a": torch.tensor([1.0]), "b": torch.tensor([1e-18])},
        {"a": torch.tensor([1.0]), "b": torch.tensor([2e-18])},
    )
    assert comparison.worst_gradient_error < 1e-14


@pytest.mark.parametrize(
    ("found", "expected"),
    [({"a": None}, {"a": torch.ones(1)}), ({"a": torch.ones(1)}, {"a": None}), ({}, {"a": torch.ones(1)})],
)
def test_a_gradient_on_one_side_only_is_a_difference(found, expected):
    assert compare(found, expected).missing == ["a"]


def test_no_gradient_on_either_side_is_none():
    assert compare({"a": None}, {"a": None}).missing == []


@pytest.mark.parametrize("found", [torch.tensor([float("nan")]), torch.ones(2)])
def test_nan_and_another_shape_are_infinitely_wrong(found):
    assert relative_error(found, torch.ones(1), 1e-3) == float("inf")
    assert compare({"a": found}, {"a": torch.ones(1)}).worst_gradient_error == float("inf")


def test_nan_loss_is_infinitely_wrong():
    comparison = Comparison()
    comparison.add_loss(float("nan"), 1.0)
    assert comparison.worst_loss_error == float("inf")


def test_equal_runs_pass():
    report().check()
    assert report().to_json()["ok"] is True


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"worst_gradient_error": 1e-3}, "gradient of 'head.weight' by 1.0e-03"),
        ({"worst_loss_error": float("inf")}, "loss by inf"),
        ({"missing": ("a", "b")}, "2 parameters have a gradient on one side only, the first is 'a'"),
        ({"worst_buffer_error": 1.0}, "disagree.*this is a defect of autopar"),
        (
            {"worst_loss_error": 1.0, "carried_buffers": ("norm.mean", "norm.seen")},
            "the model keeps a buffer 'norm.mean' and 1 more which each data rank updates in its own mi",
        ),
    ],
)
def test_differences_are_told(changes, message):
    with pytest.raises(DifferenceError, match=message):
        report(**changes).check()
    document = report(**changes).to_json()
    assert document["schema"] == 1 and document["ok"] is False


def test_infinite_errors_are_null_in_json():
    assert report(worst_gradient_error=float("inf")).to_json()["worst_gradient_error"] is None
