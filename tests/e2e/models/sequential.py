"""A plain nn.Sequential: its forward calls the batch entry `input`, a name that Python has taken."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def build_model(width: int = 32, depth: int = 4) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(16, width), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 8))


def example_batch(batch_size: int) -> dict[str, Tensor]:
    return {"input": torch.randn(batch_size, 16), "target": torch.randint(0, 8, (batch_size,))}


def loss(output: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(output, batch["target"])
