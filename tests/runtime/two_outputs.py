"""A model with an output that its loss does not read."""

import torch
from torch import nn


class TwoOutputs(nn.Module):
    """Logits for the loss, features for those who look."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.head = nn.Linear(8, 3)
        self.side = nn.Linear(8, 2)

    def forward(self, x):
        hidden = self.first(x).relu()
        return {"logits": self.head(hidden), "features": self.side(hidden)}


def build_model():
    return TwoOutputs()


def example_batch(batch_size):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(batch_size) % 3
    return {"x": torch.randn(batch_size, 4, generator=generator), "labels": labels}


def loss(output, batch):
    return nn.functional.cross_entropy(output["logits"], batch["labels"])
