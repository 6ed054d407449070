"""The parts that random models are put together from, each written in the ways that models are written."""

import math

import torch
import torch.nn.functional as F
from torch import nn

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "tanh": torch.tanh}


class Attention(nn.Module):
    """Self-attention: fused or separate projections, grouped keys, three ways of writing the product."""

    def __init__(self, width, heads, groups=None, fused=False, form="sdpa", causal=True, bias=True):
        super().__init__()
        self.heads, self.groups, self.size = heads, groups or heads, width // heads
        self.form, self.causal = form, causal
        num_keys = self.groups * self.size
        self.fused = fused and self.groups == heads
        if self.fused:
            self.qkv = nn.Linear(width, 3 * width, bias=bias)
        else:
            self.q = nn.Linear(width, width, bias=bias)
            self.k, self.v = nn.Linear(width, num_keys, bias=False), nn.Linear(width, num_keys, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, x, memory=None):
        memory = x if memory is None else memory
        if self.fused:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            q, k, v = self.q(x), self.k(memory), self.v(memory)
        q = q.unflatten(-1, (self.heads, self.size)).transpose(1, 2)
        k, v = (y.view(*y.shape[:2], self.groups, self.size).permute(0, 2, 1, 3) for y in (k, v))
        if self.groups != self.heads:
            k, v = (y.repeat_interleave(self.heads // self.groups, dim=1) for y in (k, v))
        return self.out(self.mix(q, k, v).transpose(1, 2).flatten(2))

    def mix(self, q, k, v):
        if self.form == "sdpa":
            return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        if self.form == "einsum":
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(self.size)
        else:
            scores = q @ k.transpose(-1, -2) * self.size**-0.5
        if self.causal:
            future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(future, float("-inf"))
        weights = scores.softmax(-1)
        return torch.einsum("bhqk,bhkd->bhqd", weights, v) if self.form == "einsum" else weights @ v


class CrossAttention(Attention):
    """Queries of one sequence, keys and values of another."""

    def __init__(self, width, heads, form="sdpa"):
        super().__init__(width, heads, form=form, causal=False)


class RotaryAttention(Attention):
    """Self-attention with rotated queries and keys; the tables are buffers."""

    def __init__(self, width, heads, seq):
        super().__init__(width, heads)
        angles = torch.outer(torch.arange(seq), 100.0 ** (-torch.arange(0, self.size, 2) / self.size))
        self.register_buffer("cos", angles.cos().repeat(1, 2)[:, : self.size], persistent=False)
        self.register_buffer("sin", angles.sin().repeat(1, 2)[:, : self.size], persistent=False)

    def turn(self, x):
        half = self.size // 2
        return x * self.cos + torch.cat((-x[..., half:], x[..., :half]), -1) * self.sin

    def mix(self, q, k, v):
        return super().mix(self.turn(q), self.turn(k), v)


class TorchAttention(nn.Module):
    """What torch itself offers."""

    def __init__(self, width, heads):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class MLP(nn.Module):
    """Two linear layers."""

    def __init__(self, width, hidden, activation="gelu", bias=True):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden, bias=bias), nn.Linear(hidden, width, bias=bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x):
        return self.down(self.activation(self.up(x)))


class GatedMLP(nn.Module):
    """A gate times a value; one fused projection or two."""

    def __init__(self, width, hidden, activation="silu", fused=False):
        super().__init__()
        self.fused, self.activation = fused, ACTIVATIONS[activation]
        if fused:
            self.both = nn.Linear(width, 2 * hidden)
        else:
            self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x):
        gate, up = self.both(x).split(self.down.in_features, -1) if self.fused else (self.gate(x), self.up(x))
        return self.down(self.activation(gate) * up)


class Experts(nn.Module):
    """A mixture of experts, all computed, few of them weighted."""

    def __init__(self, width, hidden, num, top):
        super().__init__()
        self.router, self.top = nn.Linear(width, num, bias=False), top
        self.up = nn.Parameter(torch.randn(num, width, hidden) / width**0.5)
        self.down = nn.Parameter(torch.randn(num, hidden, width) / hidden**0.5)

    def forward(self, x):
        chances = self.router(x).softmax(-1)
        best, index = chances.topk(self.top, dim=-1)
        weights = torch.zeros_like(chances).scatter(-1, index, best / best.sum(-1, keepdim=True))
        hidden = F.gelu(torch.einsum("bsw,ewh->bseh", x, self.up))
        return torch.einsum("bseh,ehw,bse->bsw", hidden, self.down, weights)


class SlottedExperts(nn.Module):
    """Experts that each read all tokens and add what is theirs."""

    def __init__(self, width, num):
        super().__init__()
        self.router = nn.Linear(width, num)
        self.experts = nn.ModuleList(MLP(width, 2 * width, "relu") for _ in range(num))

    def forward(self, x):
        weights = F.softmax(self.router(x), dim=-1)
        result = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            result = result + weights[..., index, None] * expert(x)
        return result


class PlainRMSNorm(nn.Module):
    """Root mean square, written out."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class Transposed(nn.Module):
    """A module on (batch, width, seq)."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


class Residual(nn.Module):
    """A skip connection around modules, the norm before or after."""

    def __init__(self, norm, *modules, after=False, in_place=False):
        super().__init__()
        self.norm, self.inner, self.drop = norm, nn.ModuleList(modules), nn.Dropout(0.1)
        self.after, self.in_place = after, in_place

    def forward(self, x, *memory):
        y = x if self.after else self.norm(x)
        for module in self.inner:
            y = module(y, *memory) if isinstance(module, CrossAttention) else module(y)
        y = self.drop(y)
        if self.in_place:
            y += x
        else:
            y = x + y
        return self.norm(y) if self.after else y


class Recurrent(nn.Module):
    """An LSTM or a GRU over the sequence."""

    def __init__(self, kind, width, layers=1):
        super().__init__()
        self.cell = getattr(nn, kind)(width, width, layers, batch_first=True)

    def forward(self, x):
        return self.cell(x)[0]


class Position(nn.Module):
    """A learned table added to the sequence."""

    def __init__(self, seq, width):
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, seq, width) * 0.1)

    def forward(self, x):
        return x + self.table[:, : x.shape[1]]


class ClassToken(nn.Module):
    """One more token in front."""

    def __init__(self, width):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, width))

    def forward(self, x):
        return torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1)


class Scale(nn.Module):
    """A scale for every channel, learned or a buffer, and a frozen offset."""

    def __init__(self, width, learned=True):
        super().__init__()
        value = torch.linspace(0.5, 1.5, width)
        if learned:
            self.scale = nn.Parameter(value)
        else:
            self.register_buffer("scale", value)
        self.offset = nn.Parameter(torch.full((width,), 0.1), requires_grad=False)

    def forward(self, x):
        return x * self.scale + self.offset


class Product(nn.Module):
    """A product with a plain parameter, written in one of several ways."""

    def __init__(self, width, form):
        super().__init__()
        self.weight, self.form = nn.Parameter(torch.randn(width, width) / width**0.5), form

    def forward(self, x):
        if self.form == "einsum":
            return torch.einsum("...i,oi->...o", x, self.weight)
        if self.form == "matmul":
            return torch.matmul(x, self.weight)
        if self.form == "transposed":
            return F.linear(x, self.weight.t())
        return torch.addmm(x.flatten(0, -2), x.flatten(0, -2), self.weight).view_as(x)


class Rearranged(nn.Module):
    """Moves, cuts and joins elements of (batch, seq, width), and computes little."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, x):
        batch, seq, width = x.shape
        match self.form:
            case "roll":
                return x.roll(1, 1)
            case "flip":
                return x.flip(1) * 0.5
            case "rotate":
                return torch.cat((x[:, 1:], x[:, :1]), 1)
            case "shift":
                return x + F.pad(x, (0, 0, 1, 0))[:, :-1]
            case "halves":
                a, b = x.chunk(2, -1)
                return torch.cat((b, a * b.sigmoid()), -1)
            case "interleave":
                a, b = x[..., ::2], x[..., 1::2]
                return torch.stack((b, a), -1).flatten(-2)
            case "regroup":
                return x.view(batch, seq, 2, width // 2).transpose(2, 3).reshape(batch, seq, width)
            case "tokens":
                return x.reshape(batch * seq, width).softmax(0).view(batch, seq, width) + x
            case "center":
                return x - x.mean(1, keepdim=True)
            case "normalise":
                return F.normalize(x + 0.5, dim=-1) * width**0.5  # a vector of zeros has no direction
            case "cumulate":
                return x.cumsum(1) / seq
            case "unbind":
                return torch.stack([y * (i + 1) for i, y in enumerate(x.unbind(1))], 1)
            case "swap":
                return (x.permute(2, 0, 1) * 1.5).permute(1, 2, 0).contiguous()
            case "mask":
                keep = torch.arange(seq, device=x.device) % 3 != 1
                return torch.where(keep[None, :, None], x, x.abs())
            case "clamp":
                return x.clamp(-1.5, 1.5).clone().mul_(1.1)
            case "gather":
                return x.index_select(1, torch.arange(seq - 1, -1, -1, device=x.device))
            case _:
                return x.sort(dim=1).values


class SqueezeExcite(nn.Module):
    """Channels weighted by what the whole image says."""

    def __init__(self, channels):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Split(nn.Module):
    """Half of the channels go through a module, then the halves change places."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        a, b = x.chunk(2, dim=1)
        y = torch.cat((a, self.inner(b)), 1)
        batch, channels, *size = y.shape
        return y.view(batch, 2, channels // 2, *size).transpose(1, 2).flatten(1, 2)


class Cross(nn.Module):
    """A layer of a deep-and-cross network: the first features times a linear map of the present ones."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x, first):
        return first * self.linear(x) + x


def pairs(vectors):
    """Products of all pairs of vectors: (batch, features, width) -> (batch, pairs)."""
    products = torch.bmm(vectors, vectors.transpose(1, 2))
    row, column = torch.tril_indices(vectors.shape[1], vectors.shape[1], -1)
    return products[:, row, column]
