"""Activations in host memory: equal gradients, each storage once, parameters left alone, freed in time."""

import torch
from torch import nn

from autopar.runtime import saved_tensors
from autopar.runtime.saved_tensors import OffloadedActivations


class Counting(saved_tensors._Copier):
    """Bytes that went down and up, and those that are up now."""

    def __init__(self):
        super().__init__(torch.device("cpu"))
        self.down_bytes = self.up_bytes = 0
        self.order = []

    def down(self, saved):
        self.down_bytes += saved.nbytes
        return super().down(saved)

    def up(self, host):
        self.up_bytes += host.data.nbytes
        self.order.append(host.data.nbytes)
        return super().up(host)


def offloading():
    offload = OffloadedActivations(torch.device("cpu"))
    offload._copier = Counting()
    return offload, offload._copier


def test_gradients_are_those_of_saved_tensors_that_stay():
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.LayerNorm(6)).double() for _ in range(3)]
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)

    def run(offload):
        value = x
        if offload:
            offload.begin()
        for layer in layers:
            if offload:
                with offload.of_block(layer.parameters()):
                    value = layer(value)
            else:
                value = layer(value)
        parameters = [p for layer in layers for p in layer.parameters()]
        return torch.autograd.grad(value.square().sum(), [x, *parameters])

    expected = run(None)
    offload, copier = offloading()
    assert all(torch.equal(a, b) for a, b in zip(run(offload), expected, strict=True))
    # Of every layer: its input, the result of tanh (saved by two), and the norm's two numbers a row.
    assert copier.down_bytes == 3 * 8 * (24 + 24 + 4 + 4) == copier.up_bytes


def test_what_is_on_another_device_stays_there():
    offload, copier = offloading()
    copier.device = torch.device("cuda")
    x = torch.randn(3, requires_grad=True)
    offload.begin()
    with offload.of_block([]):
        y = x.exp().sum()
    y.backward()
    assert copier.down_bytes == 0


def test_views_of_the_same_elements_travel_once():
    offload, copier = offloading()
    x = torch.randn(2, 6, requires_grad=True)
    offload.begin()
    with offload.of_block([]):
        doubled = x * 2
        y = (doubled.t().exp().t() * doubled.view(3, 4).sin().view(2, 6)).sum()
    (found,) = torch.autograd.grad(y, x)
    # The results of exp and sin; doubled, saved by sin alone.
    assert copier.down_bytes == 3 * 48
    value = 2 * x.detach()
    torch.testing.assert_close(found, 2 * value.exp() * (value.sin() + value.cos()))


def test_pieces_and_expanded_tensors_travel_without_their_surroundings():
    offload, copier = offloading()
    x = torch.randn(4, 6, requires_grad=True)
    offload.begin()
    with offload.of_block([]):
        piece, other = (x * 2).chunk(2, 1)
        spread = other.sum().expand(4, 3)
        y = (piece * spread).sum()
    (found,) = torch.autograd.grad(y, x)
    assert copier.down_bytes == 4 * (12 + 1)
    value = 2 * x.detach()
    left, right = value[:, :3], value[:, 3:]
    expected = torch.cat([2 * right.sum().expand(4, 3), 2 * left.sum().expand(4, 3)], 1)
    torch.testing.assert_close(found, expected)


def test_an_lstm_that_writes_its_gates_in_place_keeps_each_as_it_was():
    torch.manual_seed(0)
    layer = nn.LSTM(3, 4).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    expected = torch.autograd.grad(layer(x)[0].square().sum(), list(layer.parameters()))
    offload, _ = offloading()
    offload.begin()
    with offload.of_block(layer.parameters()):
        result = layer(x)[0]
    found = torch.autograd.grad(result.square().sum(), list(layer.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_block_before_comes_up_together_with_the_one_in_need():
    offload, copier = offloading()
    values = [torch.randn(1, requires_grad=True)]
    offload.begin()
    for size in (2, 3, 5):
        with offload.of_block([]):
            values.append(values[-1].expand(size).exp().sum())
    assert copier.order == []
    torch.autograd.grad(values[3], values[2], retain_graph=True)
    assert copier.order == [20, 12]
    values[3].backward()
    assert copier.order == [20, 12, 8]
    assert copier.up_bytes == copier.down_bytes == 40
