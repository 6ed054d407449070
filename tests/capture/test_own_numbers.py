"""Numbers that a forward changes in its modules: refused where the graph depends on them, else let be."""

import pytest
import torch
from torch import Tensor, nn

from autopar.capture.capture import capture
from autopar.capture.own_numbers import OwnNumbers
from autopar.capture.target import ModelSource, source_from_functions
from autopar.errors import CaptureError
from tests.capture.chain_runner import assert_same_as_eager


class Warmup(nn.Module):
    """Computes with the number of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.num_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.num_calls += 1
        return self.linear(x).square().mean() * self.num_calls


class Nested(nn.Module):
    """Has a layer that does."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.inner = Warmup()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.first(x))


class InFloats(Warmup):
    """A rate that decays."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = 1.0

    def forward(self, x: Tensor) -> Tensor:
        self.rate *= 0.5
        return self.linear(x).square().mean() * self.rate


class Counts(Warmup):
    """Counts for others."""

    def forward(self, x: Tensor) -> Tensor:
        self.num_calls += 1
        return self.linear(x).square().mean()


class Table(nn.Module):
    """Makes a longer table when a longer sequence comes, and notes its length."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.length = 2
        self.table = torch.ones(2)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > self.length:
            self.length = x.shape[1]
            self.table = torch.linspace(0, 1, self.length)
        return (self.linear(x) * self.table).square().mean()


def source_of(model: type[nn.Module]) -> ModelSource:
    return source_from_functions(model, lambda size: {"x": torch.randn(size, 4)})


@pytest.mark.parametrize(
    ("model", "name"), [(Warmup, "'num_calls'"), (Nested, "'inner.num_calls'"), (InFloats, "'rate'")]
)
def test_a_number_that_the_next_forward_computes_with_is_refused(model: type[nn.Module], name: str) -> None:
    with pytest.raises(CaptureError, match=f"computes with {name}, which it changes itself.*register_buffer"):
        capture(source_of(model))


def test_a_counter_that_is_only_counted_is_let_be_and_named() -> None:
    captured = capture(source_of(Counts), torch.float64)
    assert captured.unused_counters == "'num_calls'"
    assert_same_as_eager(captured, 2)


def test_a_length_beside_a_table_is_no_counter() -> None:
    captured = capture(source_of(Table), torch.float64)
    assert captured.unused_counters == ""
    assert_same_as_eager(captured, 3)


def test_what_becomes_another_kind_of_value_is_no_number_that_changed() -> None:
    model = Warmup()
    before = OwnNumbers.of(model)
    model.num_calls = torch.ones(())  # type: ignore[assignment]
    assert not before.changed(model)
