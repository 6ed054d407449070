"""The single process that plans are compared with."""

import torch
from torch import nn

from autopar.capture.target import source_from_functions
from autopar.verify.reference import Reference


class Table(nn.Module):
    def __init__(self, sparse):
        super().__init__()
        self.rows = nn.Embedding(10, 4, sparse=sparse)
        self.bags = nn.EmbeddingBag(10, 4, mode="sum", sparse=sparse)

    def forward(self, ids):
        return (self.rows(ids).sum(1) * self.bags(ids)).mean()


def test_sparse_gradients_become_dense():
    def reference(sparse):
        return Reference(source_from_functions(lambda: Table(sparse), example_batch), ["ids"])

    def example_batch(batch_size):
        return {"ids": torch.arange(batch_size * 2).reshape(batch_size, 2) % 10}

    plain, sparse = reference(False), reference(True)
    batches = [example_batch(2), example_batch(3)]
    assert plain.step(batches) == sparse.step(batches)
    for name, gradient in plain.gradients().items():
        found = sparse.gradients()[name]
        assert not found.is_sparse and torch.equal(found, gradient)


class Spectrum(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("phases", torch.exp(1j * torch.arange(5.0)))

    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(self.linear(x)) * self.phases, n=8).square().mean()


def test_complex_buffers_stay_complex():
    source = source_from_functions(Spectrum, lambda size: {"x": torch.ones(size, 8)})
    assert Reference(source, ["x"]).model.phases.is_complex()
