"""Weights that are not the model's numbers are refused before anything is copied."""

import pytest
import torch
from torch import nn

from autopar.errors import UsageError
from autopar.runtime.initialise import InitialState
from autopar.runtime.safetensors_file import write_tensors


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(6, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("mask", torch.ones(4))


def state(**changes):
    return {**Tied().state_dict(), **changes}


def write(path, tensors):
    write_tensors(path, {name: (tuple(x.shape), x.dtype) for name, x in tensors.items()}, tensors.items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_are_read(dtype):
    given = {name: value.to(dtype) for name, value in Tied().state_dict().items()}
    found = dict(InitialState(Tied, init=given).values())
    assert all(torch.equal(value, given[name]) for name, value in found.items())


def test_a_mask_may_be_saved_as_bool():
    found = dict(InitialState(Tied, init=state(mask=torch.ones(4, dtype=torch.bool))).values())
    assert found["mask"].dtype is torch.bool


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(tmp_path, dtype):
    """A folder may hold more than the model has, the scales of its weights among it."""
    quantised = {"mix.weight": torch.ones(4, 4).to(dtype), "mix.weight_scale": torch.ones(1)}
    given = state(**quantised)
    del given["head.weight"]
    write(tmp_path / "model.safetensors", given)
    with pytest.raises(UsageError, match=rf"'mix.weight' is {dtype} in '.*' and torch.float32 in the model"):
        InitialState(Tied, init=tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mix.weight", torch.ones(4, 4, dtype=torch.complex64), "is torch.complex64 in the state dict given"),
        ("mix.weight", torch.ones(4, 4, device="meta"), "which is on the device meta, without values; give"),
        ("mix.weight", torch.ones(4, 4).to_sparse(), "which is torch.sparse_coo; give dense tensors"),
        ("mix.weight", torch.ones(4, 2, 2), r"'mix.weight' has shape \(4, 2, 2\) in the state dict given as"),
        (
            "head.weight",
            torch.ones(6, 3),
            r"'head.weight' has shape \(6, 3\) in the state dict given as init",
        ),
    ],
)
def test_what_is_no_value_of_the_tensor_is_refused(name, value, message):
    with pytest.raises(UsageError, match=message):
        InitialState(Tied, init=state(**{name: value}))


@pytest.mark.parametrize("given", [Tied(), None, 3])
def test_what_is_no_source_of_weights_is_refused(given):
    with pytest.raises(
        UsageError, match=rf"init is a {type(given).__name__}; give 'seeded' or 'exact', a state"
    ):
        InitialState(Tied, init=given)


def test_two_values_of_a_tied_tensor_are_refused():
    given = state(**{"head.weight": torch.ones(6, 4)})
    found = InitialState(Tied, init=given)
    with pytest.raises(UsageError, match=r"has different values for 'table.weight' and 'head.weight', which"):
        list(found.values())
    same = {**given, "head.weight": given["table.weight"].clone()}
    assert torch.equal(dict(InitialState(Tied, init=same).values())["table.weight"], given["table.weight"])
