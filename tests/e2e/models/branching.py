"""Control flow that depends on values: it cannot be captured."""

import torch
from torch import Tensor, nn


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if y.sum() > 0:
            y = y * 2
        return y


def build_model() -> nn.Module:
    return Branching()


def example_batch(batch_size: int) -> dict[str, Tensor]:
    return {"x": torch.randn(batch_size, 8)}


def loss(output: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return output.pow(2).mean()
