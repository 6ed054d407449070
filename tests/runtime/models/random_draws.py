"""Random numbers of every sort: noise of an autoencoder, dropped paths, Gumbel noise, random labels."""

import torch
import torch.nn.functional as F
from torch import nn


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x):
        keep = x.new_empty(x.shape[0], 1).bernoulli_(0.8) / 0.8
        return x + keep * torch.tanh(self.linear(x))


class RandomDraws(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(8, 16)
        self.layers = nn.ModuleList(Layer() for _ in range(4))
        self.decoder = nn.Linear(8, 8)

    def forward(self, x):
        y = self.encoder(x)
        for layer in self.layers:
            y = layer(y)
        mean, log_variance = y.chunk(2, -1)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        z = z + torch.rand(z.shape) + torch.empty_like(z).uniform_() + torch.normal(0.0, 1.0, z.shape)
        z = z * torch.bernoulli(mean.sigmoid().detach())
        z = z + F.gumbel_softmax(z, tau=0.5) + torch.randint_like(z, 1, 4)
        labels = torch.randint(1, 8, (x.shape[0],))
        return F.cross_entropy(self.decoder(z), labels) + F.mse_loss(z, x)


def build_model():
    return RandomDraws()


def example_batch(batch_size):
    return {"x": torch.randn(batch_size, 8, generator=torch.Generator().manual_seed(batch_size))}
