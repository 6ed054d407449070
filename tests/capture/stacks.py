"""Small models with layers in a row, for tests of what is traced once; captured with and without sharing."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from autopar.capture.target import ModelSource, source_from_functions
from tests.capture.same_graph import assert_same_graph, capture_both_ways


class Layer(nn.Module):
    """A layer whose number of traces is counted."""

    def __init__(self, index: int = 0) -> None:
        super().__init__()
        self.index = index
        self.linear = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.linear(x)).relu()


class Stack(nn.Module):
    """Layers in a row between an embedding and a mean."""

    def __init__(self, make: Callable[[int], nn.Module], num_layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.layers = nn.ModuleList(make(index) for index in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return x.square().mean()


def source(build: Callable[[], nn.Module]) -> ModelSource:
    return source_from_functions(build, lambda n: {"x": torch.randn(n, 6, 8)})


def stack(make: Callable[[int], nn.Module], num_layers: int = 3) -> ModelSource:
    return source(lambda: Stack(make, num_layers))


def count(model: ModelSource, traced: list[str], layer: str = "Layer") -> int:
    """Traces of ``layer`` in the shared capture, which must equal the full one."""
    assert_same_graph(*capture_both_ways(model))
    return traced.count(layer)
