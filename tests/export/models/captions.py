"""Words under an image: two inputs, of which one is a label too, and a label that is no input."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Layer(nn.Module):
    """A block that widens and narrows again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Of ``(batch, seq, width)``."""
        y: Tensor = x + self.narrow(functional.gelu(self.widen(self.norm(x))))
        return y


class Captions(nn.Module):
    """Scores for the next word."""

    def __init__(self, width: int, depth: int, vocab: int) -> None:
        super().__init__()
        self.pixels = nn.Linear(12, width)
        self.words = nn.Embedding(vocab, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(depth))
        self.out = nn.Linear(width, vocab)

    def forward(self, image: Tensor, words: Tensor) -> Tensor:
        """``(batch, 12)`` and ``(batch, seq)`` -> ``(batch, seq, vocab)``."""
        x = self.words(words) + self.pixels(image).unsqueeze(1)
        for layer in self.layers:
            x = layer(x)
        scores: Tensor = self.out(x)
        return scores


def build_model(width: int = 16, depth: int = 4, vocab: int = 24) -> nn.Module:
    return Captions(width, depth, vocab)


def example_batch(batch_size: int, vocab: int = 24) -> dict[str, Tensor]:
    return {
        "words": torch.randint(vocab, (batch_size, 6)),
        "image": torch.randn(batch_size, 12),
        "weight": torch.rand(batch_size, 1),
    }


def loss(output: Tensor, batch: dict[str, Tensor]) -> Tensor:
    each = functional.cross_entropy(output[:, :-1].transpose(1, 2), batch["words"][:, 1:], reduction="none")
    return (each * batch["weight"]).mean()
