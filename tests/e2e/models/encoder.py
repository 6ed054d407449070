"""nn.TransformerEncoder: fused in_proj weights whose heads are merged with the batch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Encoder(nn.Module):
    def __init__(self, dim: int = 32, num_heads: int = 4, num_layers: int = 4, vocab: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        layer = nn.TransformerEncoderLayer(dim, num_heads, 4 * dim, 0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.head = nn.Linear(dim, vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens)))


def build_model() -> nn.Module:
    return Encoder()


def example_batch(batch_size: int) -> dict[str, Tensor]:
    tokens = torch.randint(0, 64, (batch_size, 16))
    return {"tokens": tokens, "labels": tokens}


def loss(output: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), batch["labels"].flatten())
