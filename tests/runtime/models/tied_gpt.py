"""A small GPT: fused QKV, tied embedding, dropout by argument."""

import torch
import torch.nn.functional as F
from torch import nn

VOCAB, SEQ, WIDTH, HEADS = 32, 8, 16, 4


class Block(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc, self.out = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        batch, seq, width = x.shape
        q, k, v = (
            part.view(batch, seq, HEADS, width // HEADS).transpose(1, 2)
            for part in self.qkv(self.ln_1(x)).split(width, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, seq, width)
        x = x + self.drop(self.proj(y))
        return x + self.drop(self.out(F.gelu(self.fc(self.ln_2(x)))))


class GPT(nn.Module):
    def __init__(self, n_layer, dropout, tied):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCAB, WIDTH), nn.Embedding(SEQ, WIDTH)
        self.blocks = nn.ModuleList([Block(dropout) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        if tied:
            self.head.weight = self.wte.weight

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))


def build_model(n_layer: int = 3, dropout: float = 0.0, tied: bool = True, num_frozen: int = 0):
    model = GPT(n_layer, dropout, tied)
    if num_frozen:
        for module in (model.wte, model.wpe, *model.blocks[:num_frozen]):
            module.requires_grad_(False)
    return model


def example_batch(batch_size: int):
    tokens = torch.randint(
        0, VOCAB, (batch_size, SEQ + 1), generator=torch.Generator().manual_seed(batch_size)
    )
    return {"tokens": tokens[:, :-1].clone(), "labels": tokens[:, 1:].clone()}


def loss(output, batch):
    return F.cross_entropy(output.flatten(0, 1), batch["labels"].flatten())
