"""A transformer layer with attention spelt out, as the papers on activation memory count it."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autopar.capture.capture import Capture, capture
from autopar.capture.model_graph import Block, InputKind, ModelGraph
from autopar.capture.target import source_from_functions
from autopar.sharding.boundary import block_boundary
from autopar.sharding.placement import Placement, Shard
from autopar.sharding.propagation import BlockSharding, propagate


class Attention(nn.Module):
    def __init__(self, hidden: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.proj = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, hidden = x.shape
        shape = (batch, seq, self.heads, hidden // self.heads)
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.qkv(x).split(hidden, dim=2))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            y = torch.matmul(F.dropout(F.softmax(torch.matmul(q, k.transpose(2, 3)), -1), 0.1), v)
        return self.proj(y.transpose(1, 2).reshape(batch, seq, hidden))


class Layer(nn.Module):
    def __init__(self, hidden: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.attn = Attention(hidden, heads, fused)
        self.fc, self.out = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.dropout(self.attn(self.ln_1(x)), 0.1)
        return x + F.dropout(self.out(F.gelu(self.fc(self.ln_2(x)))), 0.1)


class Model(nn.Module):
    def __init__(self, layers: int, hidden: int, heads: int, vocab: int, fused: bool) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab, hidden)
        self.blocks = nn.ModuleList(Layer(hidden, heads, fused) for _ in range(layers))
        self.head = nn.Linear(hidden, vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@cache
def captured(
    layers: int, hidden: int, heads: int, seq: int, vocab: int = 512, fused: bool = False
) -> Capture:
    def batch(batch_size: int) -> dict[str, Tensor]:
        tokens = torch.randint(0, vocab, (batch_size, seq + 1))
        return {"tokens": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous()}

    def loss(output: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), batch["labels"].flatten())

    source = source_from_functions(lambda: Model(layers, hidden, heads, vocab, fused), batch, loss)
    return capture(source, torch.float16)


def named(graph: ModelGraph, name: str) -> Block:
    return next(block for block in graph.blocks if block.name == name)


def megatron(graph: ModelGraph, block: Block, degree: int, word: str = "replicate") -> BlockSharding:
    """Column, then row parallel, with activations between blocks as ``word`` says."""
    placements: dict[str, Placement] = {}
    for item in block.inputs:
        if item.kind is not InputKind.PARAMETER:
            continue
        if ".qkv." in item.source:
            placements[item.source] = Shard(0, 3)
        elif ".fc." in item.source:
            placements[item.source] = Shard(0)
        elif item.source.endswith((".proj.weight", ".out.weight")):
            placements[item.source] = Shard(1)
    inputs, outputs = block_boundary(graph, block, word, word, degree)
    return propagate(block, degree, placements, inputs, outputs)
