"""T5-like: many blocks read the encoder's output and a learned position bias; an embedding is shared."""

import torch
import torch.nn.functional as F
from torch import nn

VOCAB, SEQ, WIDTH, HEADS = 24, 6, 16, 2


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x, memory, bias):
        q, k, v = (
            f(y).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for f, y in ((self.q, x), (self.k, memory), (self.v, memory))
        )
        scores = q @ k.transpose(-1, -2)
        weights = torch.softmax(scores if bias is None else scores + bias, dim=-1)
        return self.o((weights @ v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, has_memory):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), Attention()
        if has_memory:
            self.cross_norm, self.cross = nn.LayerNorm(WIDTH), Attention()
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, WIDTH))

    def forward(self, x, bias, memory=None):
        y = self.norm(x)
        x = x + self.attention(y, y, bias)
        if memory is not None:
            x = x + self.cross(self.cross_norm(x), memory, None)
        return x + self.mlp(x)


class EncoderDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = nn.Embedding(VOCAB, WIDTH)
        self.relative = nn.Embedding(SEQ * 2, HEADS)
        self.encoder = nn.ModuleList([Layer(False) for _ in range(2)])
        self.decoder = nn.ModuleList([Layer(True) for _ in range(2)])
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, source, target):
        position = torch.arange(SEQ, device=source.device)
        bias = self.relative(position[:, None] - position[None, :] + SEQ).permute(2, 0, 1).unsqueeze(0)
        memory = self.shared(source)
        for layer in self.encoder:
            memory = layer(memory, bias)
        x = self.shared(target)
        for layer in self.decoder:
            x = layer(x, bias, memory)
        return F.linear(self.norm(x), self.shared.weight)


def build_model():
    return EncoderDecoder()


def example_batch(batch_size):
    draw = torch.Generator().manual_seed(batch_size)
    return {
        k: torch.randint(0, VOCAB, (batch_size, SEQ), generator=draw) for k in ("source", "target", "labels")
    }


def loss(output, batch):
    return F.cross_entropy(output.flatten(0, 1), batch["labels"].flatten())
