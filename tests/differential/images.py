"""Steps on (batch, channels, height, width)."""

from __future__ import annotations

from tests.differential.writer import Writer


class Images(Writer):
    """Writes convolutions, and how an image becomes a vector."""

    def image(self, key: str = "images") -> tuple[int, int]:
        """Convolutions; returns channels and height of ``x``."""
        pick, channels, size = self.chance.choice, self.chance.choice((6, 8, 12)), 8
        self.entries.append((key, "torch.randn(batch_size, 3, 8, 8, generator=draw)"))
        name, bias = self.name("stem"), pick((True, False))
        self.add(
            f"self.{name} = nn.Conv2d(3, {channels}, 3, padding=1, bias={bias})", f"x = self.{name}({key})"
        )
        for _ in range(self.chance.randint(1, 4)):
            c, wide = channels, pick((channels, 2 * channels))
            norm = pick((f"nn.BatchNorm2d({c})", f"nn.BatchNorm2d({c})", f"nn.GroupNorm(2, {c})",
                         f"nn.InstanceNorm2d({c}, affine=True)"))  # fmt: skip
            activation = pick(("nn.ReLU()", "nn.ReLU(inplace=True)", "nn.Hardswish()", "nn.LeakyReLU(0.1)"))
            text = pick((
                f"nn.Sequential(nn.Conv2d({c}, {c}, 3, padding=1, bias=False), {norm}, {activation})",
                f"Residual({norm}, nn.Conv2d({c}, {c}, 3, padding=1), {activation})",
                f"nn.Sequential(nn.Conv2d({c}, {wide}, 1), {activation}, nn.Conv2d({wide}, {c}, 1))",
                f"nn.Sequential(nn.Conv2d({c}, {c}, 3, 1, 1, groups={c}), nn.Conv2d({c}, {c}, 1), {norm})",
                f"nn.Sequential(nn.Conv2d({c}, {c}, 3, padding=2, dilation=2, groups=2), {activation})",
                f"SqueezeExcite({c})",
                f"Split(nn.Conv2d({c // 2}, {c // 2}, 1))",
                f"Residual(nn.BatchNorm2d({c}), SqueezeExcite({c}), after=True)",
                "nn.MaxPool2d(3, stride=1, padding=1)",
                f"nn.Sequential(nn.ConvTranspose2d({c}, {c}, 2, stride=2), nn.AvgPool2d(2))",
                f"nn.Sequential(nn.Conv2d({c}, {4 * c}, 1), nn.PixelShuffle(2), nn.MaxPool2d(2))",
                "nn.Sequential(nn.Upsample(scale_factor=2), nn.AvgPool2d(2))",
                f"nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d({c}, {c}, 3), nn.Dropout2d(0.1))",
            ))  # fmt: skip
            self.module(text, word="conv")
            if size > 4 and self.chance.random() < 0.4:
                kind, channels, size = pick(("conv", "pool")), pick((6, 8, 12)), size // 2
                conv = f"nn.Conv2d({c}, {channels}, 3, stride=2, padding=1)"
                text = f"nn.Sequential({conv}, nn.BatchNorm2d({channels}))"
                if kind == "pool":
                    pool = pick(("nn.MaxPool2d(2)", "nn.AvgPool2d(2)"))
                    text = f"nn.Sequential({pool}, nn.Conv2d({c}, {channels}, 1))"
                self.module(text, word="down", removable=False)
        return channels, size

    def image_features(self, key: str = "images") -> None:
        channels, size = self.image(key)
        name = self.name("flat")
        kind = self.chance.choice(("flatten", "mean", "adaptive"))
        inputs = channels * size * size if kind == "flatten" else channels
        call = {
            "flatten": "x.flatten(1)",
            "mean": "x.mean((2, 3))",
            "adaptive": "F.adaptive_avg_pool2d(x, 1).flatten(1)",
        }[kind]
        self.add(f"self.{name} = nn.Linear({inputs}, {self.width})", f"x = self.{name}({call})")
