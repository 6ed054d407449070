"""A module with running statistics that runs several times: its calls stay together, since each stage has a
copy of the buffers."""

import torch
from torch import nn

from autopar.capture.capture import capture
from autopar.capture.target import source_from_functions


class Twice(nn.Module):
    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.enter, self.between, self.leave = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.shared = nn.Sequential(nn.Linear(4, 4), norm(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.shared(self.enter(x))
        x = self.shared(self.between(x).relu())
        return self.leave(x).square().mean()


def names(norm: type[nn.Module]) -> list[str]:
    source = source_from_functions(lambda: Twice(norm), lambda size: {"x": torch.ones(size, 4)})
    return [block.name for block in capture(source).at(2).blocks]


def test_without_buffers_every_call_is_a_block() -> None:
    assert names(nn.LayerNorm) == ["enter", "shared", "between", "shared@2", "leave", "loss"]


def test_calls_that_change_one_buffer_are_one_block() -> None:
    assert names(nn.BatchNorm1d) == ["enter", "shared", "leave", "loss"]
