"""Networks as people write them, outside the grammar: ``build_model(net)``, ``example_batch(size, net)``."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm


def conv_twice(num_in, num_out):
    return nn.Sequential(
        nn.Conv2d(num_in, num_out, 3, padding=1),
        nn.GroupNorm(2, num_out),
        nn.LeakyReLU(0.1, True),
        nn.Conv2d(num_out, num_out, 3, padding=1),
        nn.BatchNorm2d(num_out),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Skips over the whole depth; cross entropy and Dice loss."""

    def __init__(self):
        super().__init__()
        self.down_1, self.down_2, self.middle = conv_twice(3, 8), conv_twice(8, 16), conv_twice(16, 16)
        self.widen = nn.ConvTranspose2d(16, 16, 2, 2)
        self.up_2, self.up_1, self.out = conv_twice(32, 8), conv_twice(16, 8), nn.Conv2d(8, 3, 1)

    def forward(self, images, masks):
        a = self.down_1(images)
        b = self.down_2(F.max_pool2d(a, 2))
        x = self.middle(F.max_pool2d(b, 2))
        x = self.up_2(torch.cat([self.widen(x), b], 1))
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = self.out(self.up_1(torch.cat([x, a], 1)))
        chances = x.softmax(1)
        wanted = F.one_hot(masks, 3).permute(0, 3, 1, 2).to(chances.dtype)
        overlap = (2 * (chances * wanted).sum() + 1) / (chances.sum() + wanted.sum() + 1)
        return F.cross_entropy(x, masks) + 1 - overlap


class GraphAttention(nn.Module):
    """Edge weights from a parameter cut in two; a GRU cell; a bilinear read-out."""

    def __init__(self):
        super().__init__()
        self.enter, self.edge = nn.Linear(5, 8), nn.Parameter(torch.randn(16) * 0.3)
        self.cell, self.out = nn.GRUCell(8, 8), nn.Bilinear(8, 8, 1)

    def forward(self, nodes, edges, wanted):
        h = self.enter(nodes)
        scores = (h @ self.edge[:8])[:, :, None] + (h @ self.edge[8:])[:, None, :]
        absent = (edges + torch.eye(7, dtype=edges.dtype)) == 0
        x = F.elu(F.leaky_relu(scores, 0.2).masked_fill(absent, -1e9).softmax(-1) @ h)
        y = self.cell(x.reshape(-1, 8), h.reshape(-1, 8)).view_as(x)
        return F.mse_loss(self.out(y.amax(1), y.mean(1)).squeeze(-1), wanted)


class Routed(nn.Module):
    """Top-2 experts over all tokens, an auxiliary loss, a tied head, writing in place."""

    def __init__(self):
        super().__init__()
        self.embed, self.router = nn.Embedding(20, 12), nn.Linear(12, 4)
        self.up = nn.Parameter(torch.randn(4, 12, 16) * 0.3)
        self.down = nn.Parameter(torch.randn(4, 16, 12) * 0.3)
        self.head = nn.Linear(12, 20, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, tokens, labels):
        self.steps += 1
        x = self.embed(tokens)
        x[:, 0] = 0.5
        x[:, 1:, :4] *= 2.0
        flat = x.reshape(-1, 12)
        chances = self.router(flat).softmax(-1)
        best, index = chances.topk(2, -1)
        chosen = F.one_hot(index, 4).to(x.dtype)
        hidden = F.silu(torch.bmm(flat[None].expand(4, -1, -1), self.up))
        weights = (best[..., None] * chosen).sum(1)
        y = torch.einsum("ne,end->nd", weights, torch.bmm(hidden, self.down))
        balance = (chances.mean(0) * chosen.sum(1).mean(0)).sum()
        logits = self.head(x + y.view_as(x))
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten()) + 0.01 * balance


class Window(nn.Module):
    """Attention in shifted windows with a table of relative positions."""

    def __init__(self, shift):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(12), nn.Linear(12, 36), nn.Linear(12, 12)
        self.bias, self.shift = nn.Parameter(torch.randn(49, 3) * 0.1), shift
        place = torch.arange(4)
        grid = torch.stack(torch.meshgrid(place, place, indexing="ij")).flatten(1)
        apart = grid[:, :, None] - grid[:, None] + 3
        self.register_buffer("index", apart[0] * 7 + apart[1])

    def forward(self, x):
        batch, height, width, size = x.shape
        y = torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2)) if self.shift else self.norm(x)
        y = y.view(batch, height // 4, 4, width // 4, 4, size).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, size)
        q, k, v = self.qkv(y).reshape(-1, 16, 3, 3, size // 3).permute(2, 0, 3, 1, 4)
        bias = self.bias[self.index.flatten()].view(16, 16, 3).permute(2, 0, 1)
        y = ((q @ k.transpose(-2, -1) / 2 + bias).softmax(-1) @ v).transpose(1, 2).reshape(-1, 16, size)
        y = self.out(y).view(batch, height // 4, width // 4, 4, 4, size).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(batch, height, width, size)
        return x + (torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y)


class Windows(nn.Module):
    """Two window layers and a merging of patches."""

    def __init__(self):
        super().__init__()
        self.patch, self.first, self.second = nn.Conv2d(3, 12, 2, 2), Window(0), Window(2)
        self.merge, self.head = nn.Linear(48, 12), nn.Linear(12, 4)

    def forward(self, images, labels):
        x = self.second(self.first(self.patch(images).permute(0, 2, 3, 1)))
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return F.cross_entropy(self.head(self.merge(x).flatten(1, 2).mean(1)), labels)


class Siamese(nn.Module):
    """One network for three inputs; normalised weights that change buffers; a temperature."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            spectral_norm(nn.Conv2d(3, 8, 3, 2, 1)),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            weight_norm(nn.Conv2d(8, 8, 3, 2, 1)),
            nn.Flatten(),
            nn.Linear(128, 8),
        )
        self.temperature = nn.Parameter(torch.tensor(0.5))

    def forward(self, anchor, positive, negative):
        a, p, n = self.net(anchor), self.net(positive), self.net(negative)
        likeness = F.cosine_similarity(a[:, None] + 0.1, p[None] + 0.1, dim=-1) * self.temperature.exp()
        return F.triplet_margin_loss(a, p, n) + F.cross_entropy(likeness, torch.arange(a.shape[0]))


class Translator(nn.Module):
    """``nn.Transformer`` with a causal mask and padding."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(20, 16), nn.Linear(16, 20)
        self.layers = nn.Transformer(16, 4, 2, 2, 32, 0.1, batch_first=True)

    def forward(self, tokens, labels):
        mask = nn.Transformer.generate_square_subsequent_mask(6, dtype=self.out.weight.dtype)
        padding = tokens.roll(1, 1) == 0
        padding = padding & (torch.arange(6) > 0)
        x, y = self.embed(tokens), self.embed(labels.roll(1, 1))
        x = self.layers(x, y, tgt_mask=mask, src_key_padding_mask=padding, memory_key_padding_mask=padding)
        return F.cross_entropy(self.out(x).flatten(0, 1), labels.flatten())


class Tagger(nn.Module):
    """A bidirectional LSTM of two layers whose last state is read, too, and attention with its weights."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 12, padding_idx=0)
        self.rnn = nn.LSTM(12, 8, 2, batch_first=True, bidirectional=True, dropout=0.1)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True, dropout=0.1)
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, 20)

    def forward(self, tokens, labels):
        x, (state, _) = self.rnn(self.embed(tokens))
        y, weights = self.attention(x, x, x)
        x = self.norm(x + y + state[-2:].mean(0)[:, None].repeat(1, 1, 2))
        return F.cross_entropy(self.out(x).flatten(0, 1), labels.flatten()) + weights.square().mean()


NETS = {
    "unet": UNet,
    "graph": GraphAttention,
    "routed": Routed,
    "windows": Windows,
    "siamese": Siamese,
    "translator": Translator,
    "tagger": Tagger,
}
_TOKENS = {"tokens": ("int", 20, (6,)), "labels": ("int", 20, (6,))}
_ENTRIES = {
    "unet": {"images": ("float", 0, (3, 16, 16)), "masks": ("int", 3, (16, 16))},
    "graph": {"nodes": ("float", 0, (7, 5)), "edges": ("float", 0, (7, 7)), "wanted": ("float", 0, ())},
    "routed": _TOKENS,
    "windows": {"images": ("float", 0, (3, 16, 16)), "labels": ("int", 4, ())},
    "siamese": dict.fromkeys(("anchor", "positive", "negative"), ("float", 0, (3, 16, 16))),
    "translator": _TOKENS,
    "tagger": _TOKENS,
}


def build_model(net):
    return NETS[net]()


def example_batch(batch_size, net):
    draw = torch.Generator().manual_seed(batch_size)
    return {
        key: torch.randint(0, most, (batch_size, *shape), generator=draw)
        if kind == "int"
        else torch.randn(batch_size, *shape, generator=draw)
        for key, (kind, most, shape) in _ENTRIES[net].items()
    }
