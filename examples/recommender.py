"""Matrix factorisation for recommendations: nearly all parameters are in two tables, users and items.

The tables are what does not fit on one device, so they are sharded; the arithmetic is negligible. The
defaults are the size of a large public data set (10 M users, 1 M items); a toy is ``num_users=1000
num_items=500 dim=16``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MatrixFactorisation(nn.Module):
    """Rating = <user vector, item vector> + bias of the user + bias of the item (Koren et al. 2009)."""

    def __init__(self, num_users: int, num_items: int, dim: int) -> None:
        super().__init__()
        self.user = nn.Embedding(num_users, dim)
        self.item = nn.Embedding(num_items, dim)
        self.user_bias = nn.Embedding(num_users, 1)
        self.item_bias = nn.Embedding(num_items, 1)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=dim**-0.5)
        for table in (self.user_bias, self.item_bias):
            nn.init.zeros_(table.weight)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        match = (self.user(users) * self.item(items)).sum(-1)
        return match + self.user_bias(users).squeeze(-1) + self.item_bias(items).squeeze(-1)


def build_model(num_users: int = 10_000_000, num_items: int = 1_000_000, dim: int = 128) -> nn.Module:
    return MatrixFactorisation(num_users, num_items, dim)


def example_batch(
    batch_size: int, num_users: int = 10_000_000, num_items: int = 1_000_000
) -> dict[str, Tensor]:
    return {
        "users": torch.randint(0, num_users, (batch_size,)),
        "items": torch.randint(0, num_items, (batch_size,)),
        "ratings": torch.rand(batch_size),
    }


def loss(output: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return F.mse_loss(output, batch["ratings"])
