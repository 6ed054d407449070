"""Convolutions with BatchNorm, an LSTM; a frozen layer, an unused one, a batch dim that is not the first."""

import torch
import torch.nn.functional as F
from torch import nn


class Stage(nn.Module):
    def __init__(self, channels_in, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return F.relu(self.norm(self.conv(x)))


class Perception(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([Stage(3, 8), Stage(8, 8), Stage(8, 8)])
        self.project = nn.Linear(8, 12)
        self.project.weight.requires_grad_(False)
        self.lstm = nn.LSTM(12, 16, 2)
        self.head = nn.Linear(16, 2)
        self.unused = nn.Linear(4, 4)
        self.register_buffer("scale", torch.full((2,), 0.5))

    def forward(self, images, waypoints):
        x = images
        for stage in self.stages:
            x = stage(x)
        x = self.project(x.flatten(2).permute(2, 0, 1))
        y, _ = self.lstm(x)
        return F.mse_loss(self.head(y[-waypoints.shape[0] :]) * self.scale, waypoints)


def build_model():
    return Perception()


batch_dims = {"waypoints": 1}


def example_batch(batch_size):
    draw = torch.Generator().manual_seed(batch_size)
    return {
        "images": torch.randn(batch_size, 3, 16, 16, generator=draw),
        "waypoints": torch.randn(3, batch_size, 2, generator=draw),
    }
