"""Programs captured in training mode evaluate as the plain modules do."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autopar.capture.capture import capture
from autopar.capture.target import source_from_functions
from autopar.errors import UsageError
from autopar.lower.block import lower_block
from autopar.lower.evaluation import check_evaluation, evaluation_program
from autopar.lower.resolve import resolve
from tests.lower.chain import argument
from tests.lower.models import plan_for
from tests.lower.ranks import ThreadedAxis, run_on_ranks


class Everything(nn.Module):
    """What differs between training and evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.of_batch = nn.BatchNorm1d(4, track_running_stats=False)
        self.lstm = nn.LSTM(4, 4, 2, dropout=0.5, batch_first=True)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.of_batch(self.norm(x)) + self.drop(x)
        y, _ = self.lstm(x.transpose(1, 2))
        y = y.unsqueeze(1)
        return (
            F.scaled_dot_product_attention(y, y, y, dropout_p=0.5 if self.training else 0.0).square().mean()
        )


class Noise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x + torch.rand_like(x)).mean()


def example(batch_size: int) -> dict[str, Tensor]:
    shape = (batch_size, 4, 6)
    return {"x": torch.randn(shape, generator=torch.Generator().manual_seed(batch_size))}


def test_what_serves_training_alone_is_off() -> None:
    torch.manual_seed(0)
    source = source_from_functions(Everything, example, None, {})
    graph = capture(source, torch.float64).at(4)
    model = Everything().double()
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    before = {name: value.clone() for name, value in model.named_buffers()}
    resolved = resolve(plan_for(graph, {}, 1), graph)
    batch = {"x": example(4)["x"].double()}

    def rank(axis: ThreadedAxis) -> Tensor:
        values: dict[str, Tensor] = {}
        for decision in resolved.blocks:
            block = decision.block
            module = evaluation_program(lower_block(block, decision.sharding).graph)
            check_evaluation(block)
            copied = {name: value.clone() for name, value in state.items()}
            inputs = [argument(graph, block, i, values, copied, batch) for i in range(len(block.inputs))]
            values |= dict(zip(block.outputs, module(axis, *inputs), strict=True))
            for name in ("norm.running_mean", "norm.running_var"):
                torch.testing.assert_close(copied[name], before[name])
        return values[graph.loss]

    with torch.no_grad():
        torch.testing.assert_close(run_on_ranks(1, rank)[0], model.eval()(batch["x"]), rtol=1e-12, atol=0.0)


def test_other_randomness_is_refused_by_its_line() -> None:
    source = source_from_functions(Noise, lambda size: {"x": torch.zeros(size, 4)}, None, {})
    graph = capture(source, torch.float64).at(2)
    with pytest.raises(
        UsageError, match=r"test_evaluation\.py:\d+: the model draws random numbers in training"
    ):
        for block in graph.blocks:
            check_evaluation(block)


class Average(nn.Module):
    """Subtracts a moving average, before or after it has taken in the samples."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.linear, self.first = nn.Linear(4, 1), first
        self.register_buffer("average", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        before = x - self.average
        if self.training:
            self.average.mul_(0.9).add_(0.1 * x.mean(0))
        return self.linear(before if self.first else x - self.average).mean()


@pytest.mark.parametrize("first", [True, False])
def test_a_buffer_that_is_read_after_its_change_is_refused(first: bool) -> None:
    source = source_from_functions(lambda: Average(first), lambda size: {"x": torch.zeros(size, 4)}, None, {})
    blocks = capture(source, torch.float64).at(2).blocks
    refused = pytest.raises(UsageError, match=r"test_evaluation\.py:\d+: the model changes a buffer in train")
    with nullcontext() if first else refused:
        for block in blocks:
            check_evaluation(block)
