"""The chain of blocks computes what the user's module computes: loss, every gradient, every buffer."""

import pytest
import torch
from torch import Tensor, nn

from autopar.capture.capture import capture
from autopar.capture.model_graph import InputKind
from autopar.capture.target import source_from_functions
from tests.capture.chain_runner import assert_same_as_eager
from tests.capture.models import SMALL, small_capture, small_source

# Of gradients; the module itself repeats bit for bit. Llama's chain was equal on the processors seen first;
# on an AMD EPYC it differs by one unit in the last place (6e-17, in float32 2e-8).
TOLERANCES = {"hf-llama": 1e-15, "hf-mixtral": 1e-12}
FLOAT32_TOLERANCES = {"hf-llama": 1e-7}


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", SMALL)
def test_chain_equals_module(name: str, size: int) -> None:
    captured = small_capture(name)
    assert captured.dynamic
    assert_same_as_eager(captured, size, tolerance=TOLERANCES.get(name, 0.0))


@pytest.mark.parametrize("name", ["gpt", "hf-llama", "hf-t5"])
def test_chain_equals_module_in_float32(name: str) -> None:
    captured = small_capture(name, torch.float32)
    assert_same_as_eager(captured, 2, tolerance=FLOAT32_TOLERANCES.get(name, 0.0))


def test_dropout_draws_as_the_module_does() -> None:
    assert_same_as_eager(capture(small_source("gpt", dropout=0.3), torch.float64), 2)


@pytest.mark.parametrize("name", SMALL)
def test_blocks_form_a_chain(name: str) -> None:
    model = small_capture(name).at(2)
    made: set[str] = set()
    for block in model.blocks:
        placeholders = [node.name for node in block.graph.nodes if node.op == "placeholder"]
        assert placeholders == [entry.placeholder for entry in block.inputs]
        for entry in block.inputs:
            if entry.kind is InputKind.ACTIVATION:
                assert entry.source in made
        made.update(block.outputs)
    assert model.blocks[-1].outputs == (model.loss,)
    assert len({block.name for block in model.blocks}) == len(model.blocks)
    assert [block.index for block in model.blocks] == list(range(len(model.blocks)))


class Awkward(nn.Module):
    """In-place operators, a running mean under no_grad, a constant, a module that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu_()
        x = self.second(x)
        x = self.first(x).mul_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        with torch.no_grad():
            frozen = x * 2
            self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        view = x.view(-1, 2, 2)
        view.add_(1.0)
        return (x * frozen).sum() + (x * self.mean.clone()).sum()


def _awkward_source() -> object:
    return source_from_functions(Awkward, lambda batch_size: {"x": torch.randn(batch_size, 4)})


@pytest.mark.parametrize("size", [1, 2, 5])
def test_effects_and_shared_modules_survive(size: int) -> None:
    captured = capture(_awkward_source(), torch.float64)
    assert_same_as_eager(captured, size)


def test_shared_module_gets_a_name_of_its_own() -> None:
    names = [block.name for block in capture(_awkward_source()).at(2).blocks]
    assert names == ["first", "second", "first@2", "loss"]


class OneSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        rows = [self.linear(row) for row in x.unbind(0)]  # unrolled: another graph for each batch size
        return (torch.stack(rows) - target).square().mean()


def test_model_with_a_fixed_batch_is_exported_per_size() -> None:
    source = source_from_functions(OneSize, lambda n: {"x": torch.randn(n, 4), "target": torch.randn(n, 1)})
    captured = capture(source, torch.float64)
    assert not captured.dynamic
    for size in (1, 3):
        assert_same_as_eager(captured, size)
    assert captured.at(1).fingerprint == captured.at(3).fingerprint == capture(source).at(2).fingerprint
