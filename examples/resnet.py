"""Image classification with a residual network; the defaults are ResNet-50 on ImageNet (25.6 M parameters).

``depth`` is 18, 34, 50, 101 or 152. A toy is ``depth=18 width=8 image_size=32 num_classes=10``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Residual blocks in each of the four stages, and whether they are bottlenecks (He et al. 2015, table 1).
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


class ConvNorm(nn.Sequential):
    """A convolution without bias and its batch normalisation."""

    def __init__(self, num_in: int, num_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(num_in, num_out, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(num_out),
        )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1, added to the input."""

    def __init__(self, num_in: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        num_out = 4 * width if bottleneck else width
        if bottleneck:
            self.convs = nn.Sequential(
                ConvNorm(num_in, width, 1), nn.ReLU(), ConvNorm(width, width, 3, stride), nn.ReLU(),
                ConvNorm(width, num_out, 1),
            )  # fmt: skip
        else:
            self.convs = nn.Sequential(
                ConvNorm(num_in, width, 3, stride), nn.ReLU(), ConvNorm(width, num_out, 3)
            )
        changes_shape = stride != 1 or num_in != num_out
        self.shortcut = ConvNorm(num_in, num_out, 1, stride) if changes_shape else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.convs(x) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, four stages of residual blocks, and a linear classifier."""

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"depth={depth} is none of {sorted(DEPTHS)}")
        num_blocks, bottleneck = DEPTHS[depth]
        self.stem = nn.Sequential(ConvNorm(3, width, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))
        self.stages = nn.ModuleList()
        num_in = width
        for stage, count in enumerate(num_blocks):
            blocks = nn.Sequential()
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(ResidualBlock(num_in, width * 2**stage, stride, bottleneck))
                num_in = width * 2**stage * (4 if bottleneck else 1)
            self.stages.append(blocks)
        self.head = nn.Linear(num_in, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))


def build_model(depth: int = 50, width: int = 64, num_classes: int = 1000) -> nn.Module:
    return ResNet(depth, width, num_classes)


def example_batch(batch_size: int, image_size: int = 224, num_classes: int = 1000) -> dict[str, Tensor]:
    return {
        "images": torch.randn(batch_size, 3, image_size, image_size),
        "labels": torch.randint(0, num_classes, (batch_size,)),
    }


def loss(output: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(output, batch["labels"])
