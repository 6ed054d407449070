"""Layers on the nodes of one graph: entries of the batch that are the same for all samples."""

import torch
import torch.nn.functional as F
from torch import nn


class GraphNet(nn.Module):
    def __init__(self, depth=4):
        super().__init__()
        self.enter = nn.Linear(3, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(depth))
        self.leave = nn.Linear(16, 4)

    def forward(self, nodes, edges, temperature, labels):
        x = self.enter(nodes)
        for layer in self.layers:
            x = x + torch.tanh(layer(edges @ x))
        return F.cross_entropy((self.leave(x) / temperature).flatten(0, 1), labels.flatten())


def build_model():
    return GraphNet()


batch_dims = {"edges": None, "temperature": None}


def example_batch(batch_size):
    draw = torch.Generator().manual_seed(batch_size)
    return {
        "nodes": torch.randn(batch_size, 5, 3, generator=draw),
        "edges": torch.rand(5, 5, generator=torch.Generator().manual_seed(0)),
        "temperature": torch.tensor(1.5),
        "labels": torch.randint(0, 4, (batch_size, 5), generator=draw),
    }
