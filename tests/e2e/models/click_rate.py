"""Embedding bags and their products: a kernel that returns other empty results for other dtypes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClickRate(nn.Module):
    def __init__(self, num_tables: int = 4, rows: int = 64, dim: int = 16) -> None:
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, dim))
        self.tables = nn.ModuleList(nn.EmbeddingBag(rows, dim, mode="sum") for _ in range(num_tables))
        self.top = nn.Linear(dim + (num_tables + 1) * num_tables // 2, 1)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        x = self.bottom(dense)
        rows = torch.stack([x, *(table(sparse[:, i]) for i, table in enumerate(self.tables))], 1)
        products = rows @ rows.transpose(1, 2)
        i, j = torch.tril_indices(rows.shape[1], rows.shape[1], -1)
        return self.top(torch.cat([x, products[:, i, j]], 1)).squeeze(-1)


def build_model() -> nn.Module:
    return ClickRate()


def example_batch(batch_size: int) -> dict[str, Tensor]:
    return {
        "dense": torch.randn(batch_size, 13),
        "sparse": torch.randint(0, 64, (batch_size, 4, 3)),
        "click": torch.randint(0, 2, (batch_size,)).float(),
    }


def loss(output: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return F.binary_cross_entropy_with_logits(output, batch["click"])
