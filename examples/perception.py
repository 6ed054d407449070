"""A driving stack in small: convolutional perception of each camera frame, then an LSTM that plans waypoints.

The stages differ in kind (convolutions, recurrence, a head), the classic case for a pipeline whose stages
must be balanced by cost. A toy is ``width=8 hidden=32 num_frames=4 image_size=16``.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """Convolution, normalisation, ReLU; halves the resolution."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_in, num_out, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(num_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class PerceptionPlanner(nn.Module):
    """Frames of a clip -> a waypoint per frame; returns the loss itself."""

    def __init__(self, width: int, num_convs: int, hidden: int, num_lstm_layers: int) -> None:
        super().__init__()
        widths = [3, *(width * 2**i for i in range(num_convs))]
        self.perception = nn.ModuleList(ConvBlock(num_in, num_out) for num_in, num_out in pairwise(widths))
        self.features = nn.Linear(widths[-1], hidden)
        self.memory = nn.LSTM(hidden, hidden, num_lstm_layers, batch_first=True)
        self.planner = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def forward(self, frames: Tensor, waypoints: Tensor) -> Tensor:
        x = frames.flatten(0, 1)  # (batch * frames, 3, height, width)
        for block in self.perception:
            x = block(x)
        x = self.features(x.mean((2, 3))).unflatten(0, frames.shape[:2])
        x, _ = self.memory(F.relu(x))
        return F.smooth_l1_loss(self.planner(x), waypoints)


def build_model(
    width: int = 64, num_convs: int = 5, hidden: int = 1024, num_lstm_layers: int = 2
) -> nn.Module:
    return PerceptionPlanner(width, num_convs, hidden, num_lstm_layers)


def example_batch(batch_size: int, num_frames: int = 16, image_size: int = 224) -> dict[str, Tensor]:
    return {
        "frames": torch.randn(batch_size, num_frames, 3, image_size, image_size),
        "waypoints": torch.randn(batch_size, num_frames, 2),
    }
