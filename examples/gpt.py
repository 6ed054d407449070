"""A GPT language model in the GPT-2 to GPT-3 family; the defaults are GPT-2 small (124 M parameters).

Sizes by ``--arg``: GPT-2 medium is ``n_layer=24 n_embd=1024 n_head=16``, GPT-3 175B is
``n_layer=96 n_embd=12288 n_head=96 seq=2048``; a toy is ``n_layer=4 n_embd=64 n_head=4 seq=32 vocab=256``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCAB = (
    50304  # GPT-2 has 50257 tokens; rounded up to a multiple of 128, so that the table divides over devices
)


class Attention(nn.Module):
    """Causal self-attention with one fused projection to queries, keys and values."""

    def __init__(self, n_embd: int, n_head: int, dropout: float) -> None:
        super().__init__()
        self.n_head = n_head
        self.dropout = dropout
        self.qkv = nn.Linear(n_embd, 3 * n_embd)
        self.proj = nn.Linear(n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, n_embd = x.shape
        q, k, v = (
            part.view(batch, seq, self.n_head, n_embd // self.n_head).transpose(1, 2)
            for part in self.qkv(x).split(n_embd, dim=2)
        )
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(batch, seq, n_embd))


class MLP(nn.Module):
    """Two linear layers with a GELU between them, four times as wide inside."""

    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.fc = nn.Linear(n_embd, 4 * n_embd)
        self.proj = nn.Linear(4 * n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.gelu(self.fc(x), approximate="tanh"))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, n_embd: int, n_head: int, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)
        self.attn = Attention(n_embd, n_head, dropout)
        self.ln_2 = nn.LayerNorm(n_embd)
        self.mlp = MLP(n_embd)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attn(self.ln_1(x)))
        return x + self.drop(self.mlp(self.ln_2(x)))


class GPT(nn.Module):
    """Token and position embeddings, a chain of blocks, a final norm and the language-model head."""

    def __init__(
        self, n_layer: int, n_embd: int, n_head: int, seq: int, vocab: int, dropout: float, tied: bool
    ) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab, n_embd)
        self.wpe = nn.Embedding(seq, n_embd)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(n_embd, n_head, dropout) for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab, bias=False)
        self.apply(self._initialise)
        for block in self.blocks:  # GPT-2: residual projections shrink with depth
            for linear in (block.attn.proj, block.mlp.proj):
                nn.init.normal_(linear.weight, std=0.02 / (2 * n_layer) ** 0.5)
        if tied:
            self.lm_head.weight = self.wte.weight

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, input_ids: Tensor) -> Tensor:
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.drop(self.wte(input_ids) + self.wpe(position))
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def build_model(
    n_layer: int = 12,
    n_embd: int = 768,
    n_head: int = 12,
    seq: int = 1024,
    vocab: int = VOCAB,
    dropout: float = 0.0,
    tied: bool = True,
) -> nn.Module:
    return GPT(n_layer, n_embd, n_head, seq, vocab, dropout, tied)


def example_batch(batch_size: int, seq: int = 1024, vocab: int = VOCAB) -> dict[str, Tensor]:
    tokens = torch.randint(0, vocab, (batch_size, seq + 1))
    return {"input_ids": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous()}


def loss(output: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), batch["labels"].flatten())
