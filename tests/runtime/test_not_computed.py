"""What stands for an output that is not computed: any use of it says what to do."""

import copy

import pytest
import torch

from autopar.errors import UsageError
from autopar.runtime.not_computed import NotComputed


@pytest.mark.parametrize(
    "use",
    [
        lambda value: value.shape,
        lambda value: value[0],
        lambda value: value + 1,
        lambda value: 2 * value,
        lambda value: torch.ones(2) * value,
        lambda value: torch.stack([torch.ones(2), value]),
        lambda value: torch.nn.functional.mse_loss(torch.ones(2), target=value),
        lambda value: float(value),
        list,
        len,
    ],
)
def test_any_use_names_the_output_and_the_remedy(use):
    with pytest.raises(UsageError, match=r"output\['mask'\] is not computed under a plan.*0 \* output"):
        use(NotComputed("['mask']"))


def test_it_can_be_looked_at_and_handed_on():
    value = NotComputed(".hidden")
    assert repr(value) == "<output.hidden: not computed under a plan>"
    assert repr(copy.copy({"hidden": value})["hidden"]) == repr(value)
    assert not isinstance(value, torch.Tensor)
