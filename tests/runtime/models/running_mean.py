"""Buffers that the model carries on: a mean and a count from the samples, a power iteration, BatchNorm's."""

import torch
import torch.nn.functional as F
from torch import nn


class Centre(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("direction", F.normalize(torch.ones(width), dim=0))

    def forward(self, x):
        x = self.linear(x)
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
                self.seen += (x > 0).sum()
                self.steps += 1
                self.direction.copy_(F.normalize(self.linear.weight @ self.direction, dim=0))
        return F.relu(x - self.mean) / (1 + self.seen) + x * (x @ self.direction)[:, None]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Centre(6), Centre(6)])
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 1)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)).square().mean()


def build_model():
    return Model()


def example_batch(batch_size):
    return {"x": torch.linspace(-1, 2, batch_size * 6).reshape(batch_size, 6).sin()}
