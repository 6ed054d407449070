"""In a plan's own precision: as near to float64 as one process is, and a wrong run is not."""

import pytest
import torch

from autopar.capture.target import load_target
from autopar.verify.rank import micro_batches_of
from autopar.verify.rounding import FACTOR, RoundedReferences
from tests.runtime.world import MODELS


@pytest.fixture(scope="module")
def source():
    return load_target(str(MODELS / "tied_gpt.py"), {"n_layer": 1})


def references(source, dtype):
    found = RoundedReferences(source, list(source.example_batch(2)), dtype, 0, "seeded")
    found.take_weights(dict(source.build_model().named_parameters()))
    return found


def run(found, source, factor=1.0, dtype=torch.bfloat16):
    """Compares with what one process in ``dtype`` finds, its gradients times ``factor``."""
    other = references(source, dtype)
    weights = dict(found._exact.model.named_parameters())
    other.take_weights(weights)
    pieces = micro_batches_of(source.example_batch(4), {}, 2)
    loss, gradients = other._rounded_step(pieces)  # by a smaller factor where fp16 overflows, as a run does
    found.compare(loss, {name: factor * value for name, value in gradients.items()}, pieces)
    return found


@pytest.mark.parametrize(
    ("dtype", "least", "most"), [(torch.bfloat16, 1e-3, 0.1), (torch.float16, 1e-4, 0.02)]
)
def test_the_bound_is_a_few_times_the_error_of_one_process(source, dtype, least, most):
    found = run(references(source, dtype), source, dtype=dtype)
    assert least < found.worst_gradient_error < most
    assert found.worst_gradient_error * FACTOR <= found.allowed < most * FACTOR
    assert not found.missing and found.worst_parameter


@pytest.mark.parametrize("factor", [0.5, 2.0, 0.75])
def test_gradients_that_are_summed_wrongly_are_out_of_it(source, factor):
    found = run(references(source, torch.bfloat16), source, factor)
    assert found.worst_gradient_error > found.allowed


def test_a_gradient_that_is_not_there_is_missing(source):
    found = references(source, torch.bfloat16)
    pieces = micro_batches_of(source.example_batch(4), {}, 2)
    found.compare(1.0, {}, pieces)
    assert set(found.missing) == {name for name, _ in source.build_model().named_parameters()}
