"""A transformer that both sides of ``runtime.py`` run: queries, keys and values are separate projections, so
that ``parallelize_module`` can split them by heads."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(width, width) for _ in range(4))
        self.fc, self.proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, seq, width) to the same."""
        batch, seq, _ = x.shape
        y = self.ln_1(x)
        q, k, v = (
            part(y).view(batch, seq, -1, self.head_dim).transpose(1, 2)
            for part in (self.wq, self.wk, self.wv)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.wo(y.transpose(1, 2).reshape(batch, seq, -1))
        return x + self.proj(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))


class Transformer(nn.Module):
    """Embeddings, a chain of blocks, a final norm and an untied head; parts may be left out (a stage)."""

    def __init__(self, n_layer: int, width: int, heads: int, seq: int, vocab: int) -> None:
        super().__init__()
        self.wte: nn.Module | None = nn.Embedding(vocab, width)
        self.wpe: nn.Module | None = nn.Embedding(seq, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(n_layer))
        self.ln_f: nn.Module | None = nn.LayerNorm(width)
        self.lm_head: nn.Module | None = nn.Linear(width, vocab, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens to logits, or what a stage is given to what it passes on."""
        if self.wte is not None and self.wpe is not None:
            x = self.wte(x) + self.wpe(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            x = block(x)
        return x if self.ln_f is None or self.lm_head is None else self.lm_head(self.ln_f(x))


def build_model(
    n_layer: int = 4, width: int = 256, heads: int = 4, seq: int = 128, vocab: int = 4096
) -> nn.Module:
    """The model."""
    return Transformer(n_layer, width, heads, seq, vocab)


def example_batch(batch_size: int, seq: int = 128, vocab: int = 4096) -> dict[str, Tensor]:
    """Random tokens; each is to predict the next."""
    tokens = torch.randint(0, vocab, (batch_size, seq + 1))
    return {"x": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous()}


def loss(output: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross entropy of the next token."""
    return F.cross_entropy(output.flatten(0, 1), batch["labels"].flatten())
