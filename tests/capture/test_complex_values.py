"""Complex activations: computed as the module does, and never handed from block to block with gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from autopar.capture.capture import Capture, capture
from autopar.capture.target import source_from_functions
from tests.capture.chain_runner import assert_same_as_eager


class Inside(nn.Module):
    """Complex between its operators alone."""

    def __init__(self) -> None:
        super().__init__()
        self.real, self.imaginary, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.complex(self.real(x), self.imaginary(x))
        return x + self.out(torch.fft.ifft(z).real * z.abs() + z.angle())


class Handed(nn.Module):
    """Takes and returns complex values."""

    def __init__(self) -> None:
        super().__init__()
        self.real, self.imaginary = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, z: Tensor) -> Tensor:
        return torch.complex(self.real(z.real), self.imaginary(z.imag))


class Turned(nn.Module):
    """Turns by complex factors of the batch, which have no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, factors: Tensor) -> Tensor:
        pairs = torch.view_as_complex(self.linear(x).unflatten(-1, (2, 2)))
        return x + torch.view_as_real(pairs * factors).flatten(-2)


class Net(nn.Module):
    def __init__(self, layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.layers = nn.ModuleList(layer() for _ in range(3))
        self.last = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if isinstance(self.layers[0], Turned):
            factors = torch.polar(torch.ones_like(x[:, :2]), x[:, 2:])
            for layer in self.layers:
                y = layer(y, factors)
            return self.last(y).square().mean()
        z = torch.fft.fft(y) if isinstance(self.layers[0], Handed) else y
        for layer in self.layers:
            z = layer(z)
        return self.last(z.abs()).square().mean()


def captured(layer: Callable[[], nn.Module]) -> Capture:
    source = source_from_functions(lambda: Net(layer), lambda size: {"x": torch.randn(size, 4)})
    return capture(source, torch.float64)


@pytest.mark.parametrize("layer", [Inside, Handed, Turned])
def test_chain_equals_module(layer: Callable[[], nn.Module]) -> None:
    assert_same_as_eager(captured(layer), 3, tolerance=1e-14)


@pytest.mark.parametrize("layer", [Inside, Turned])
def test_blocks_are_cut_where_what_crosses_is_real_or_has_no_gradient(layer: Callable[[], nn.Module]) -> None:
    names = [block.name for block in captured(layer).at(2).blocks]
    assert names == ["first", "layers.0", "layers.1", "layers.2", "last", "loss"]


def test_layers_that_hand_on_complex_values_are_one_block() -> None:
    graph = captured(Handed).at(2)
    assert not any(spec.dtype.is_complex for spec in graph.values.values())
    assert [block.name for block in graph.blocks] == ["first", "layers.0", "loss"]
