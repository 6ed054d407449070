"""Random models: families that put the steps together, from inputs to a loss."""

from __future__ import annotations

import random

from tests.differential.images import Images
from tests.differential.model_text import ModelText
from tests.differential.sequences import Sequences


def draw_model(seed: int) -> ModelText:
    """The model of a seed."""
    return _Families(random.Random(f"model {seed}")).model()


class _Families(Sequences, Images):
    def model(self) -> ModelText:
        family = self.chance.choice(
            ("language", "language", "classifier", "vision", "vision", "tabular", "pair", "two-towers")
        )
        return getattr(self, family.replace("-", "_"))()

    def classes(self) -> ModelText:
        num = self.chance.choice((2, 5, 8, 12))
        name = self.name("head")
        self.add(f"self.{name} = nn.Linear({self.width}, {num})", f"x = self.{name}(x)")
        kind = self.chance.choice(("classes", "smooth", "nll", "regression", "binary", "weights"))
        targets = f"torch.randint(0, {num}, (batch_size,), generator=draw)"
        if kind in ("regression", "binary"):
            targets = f"torch.rand(batch_size, {num}, generator=draw)"
        self.entries.append(("labels", targets))
        loss = {
            "classes": "F.cross_entropy(x, labels)",
            "smooth": "F.cross_entropy(x, labels, label_smoothing=0.1)",
            "nll": "F.nll_loss(x.log_softmax(-1), labels)",
            "weights": "F.cross_entropy(x, labels, reduction='none').mul(labels + 1).mean()",
            "regression": "F.smooth_l1_loss(x, labels)",
            "binary": "F.binary_cross_entropy_with_logits(x, labels)",
        }[kind]
        return self.finish(loss, self.chance.random() < 0.5)

    def language_head(self, table: str) -> ModelText:
        pick = self.chance.choice
        if self.chance.random() < 0.4:
            self.add(call=f"x = F.linear(x, self.{table}.weight)")
        else:
            name = self.name("head")
            tie = self.chance.random() < 0.5
            lines = f"self.{name} = nn.Linear({self.width}, {self.vocab}, bias={pick((True, False))})"
            lines += f"\nself.{name}.weight = self.{table}.weight" if tie else ""
            self.add(lines, f"x = self.{name}(x)")
        size = f"(batch_size, {self.seq})"
        self.entries.append(("labels", f"torch.randint(0, {self.vocab}, {size}, generator=draw)"))
        loss = pick((
            "F.cross_entropy(x.flatten(0, 1), labels.flatten())",
            "F.cross_entropy(x.transpose(1, 2), labels)",
            f"F.cross_entropy(x.view(-1, {self.vocab}), labels.view(-1), ignore_index=3)",
            "F.cross_entropy(x[:, :-1].reshape(-1, x.shape[-1]), labels[:, 1:].reshape(-1))",
            "-x.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1).mean()",
        ))  # fmt: skip
        return self.finish(loss, self.chance.random() < 0.5)

    def language(self) -> ModelText:
        table = self.tokens("tokens")
        if self.chance.random() < 0.7:
            self.module(f"Position({self.seq}, {self.width})", word="position")
        self.sequence(self.chance.randint(2, 6), causal=self.chance.random() < 0.6)
        if self.chance.random() < 0.6:
            self.module(self.norm(), word="norm")
        return self.language_head(table)

    def classifier(self) -> ModelText:
        if self.chance.random() < 0.5:
            self.tokens("tokens")
        else:
            self.features("features")
        self.sequence(self.chance.randint(2, 5))
        self.pool()
        self.flat(self.chance.randint(0, 2))
        return self.classes()

    def vision(self) -> ModelText:
        if self.chance.random() < 0.6:
            self.image_features()
            self.flat(self.chance.randint(0, 2))
            return self.classes()
        channels, size = self.image()
        name = self.name("patch")
        self.add(
            f"self.{name} = nn.Conv2d({channels}, {self.width}, {size // 2}, stride={size // 2})",
            f"x = self.{name}(x).flatten(2).transpose(1, 2)",
        )
        self.seq = 4
        if self.chance.random() < 0.5:
            self.add(f"self.token = ClassToken({self.width})", "x = self.token(x)")
            self.seq = 5
        self.module(f"Position({self.seq}, {self.width})", word="position")
        self.sequence(self.chance.randint(1, 4))
        self.pool()
        return self.classes()

    def tabular(self) -> ModelText:
        width, tables = self.width, self.chance.randint(2, 3)
        self.entries.append(("dense", "torch.randn(batch_size, 7, generator=draw)"))
        self.add(f"self.dense = nn.Sequential(nn.Linear(7, {width}), nn.ReLU())", "dense = self.dense(dense)")
        for index in range(tables):
            size = self.chance.choice((8, 11, 24))
            key = f"category_{index}"
            bag = self.chance.random() < 0.4
            shape = "(batch_size, 3)" if bag else "(batch_size,)"
            self.entries.append((key, f"torch.randint(0, {size}, {shape}, generator=draw)"))
            call = f"self.{key}({key}).sum(1)" if bag else f"self.{key}({key})"
            self.add(f"self.{key} = nn.Embedding({size}, {width})", f"{key} = {call}")
        keys = ", ".join(["dense", *(f"category_{index}" for index in range(tables))])
        num = tables + 1
        if self.chance.random() < 0.5:
            inputs = width + num * (num - 1) // 2
            call = f"x = torch.cat((dense, pairs(torch.stack(({keys}), 1))), 1)"
        else:
            inputs, call = num * width, f"x = torch.cat(({keys}), -1)"
        self.add(f"self.enter = nn.Linear({inputs}, {width})", f"{call}\nx = self.enter(x)\nfirst = x")
        for _ in range(self.chance.randint(0, 2)):
            name = self.name("cross")
            self.add(f"self.{name} = Cross({width})", f"x = self.{name}(x, first)", is_removable=True)
        self.flat(self.chance.randint(1, 3))
        return self.classes()

    def pair(self) -> ModelText:
        """An encoder and a decoder that reads its result again and again."""
        table = self.tokens("source")
        self.sequence(self.chance.randint(1, 3))
        self.add(call="memory = x")
        shares = self.chance.random() < 0.6
        self.saved, self.reusable = [], []
        target = self.tokens("target", table=table if shares else None)
        for _ in range(self.chance.randint(1, 3)):
            self.sequence(1, causal=True)
            name = self.name("cross")
            form = self.chance.choice(("sdpa", "softmax", "einsum"))
            text = f"Residual({self.norm()}, CrossAttention({self.width}, {self.heads()}, {form!r}))"
            self.add(f"self.{name} = {text}", f"x = self.{name}(x, memory)", is_removable=True)
        return self.language_head(target)

    def two_towers(self) -> ModelText:
        """Images and texts whose vectors are compared within a micro-batch."""
        self.image_features()
        self.add(call="image = x")
        self.saved, self.reusable, self.linears = [], [], []
        self.tokens("tokens")
        self.sequence(self.chance.randint(1, 3))
        self.pool()
        if self.chance.random() < 0.4:
            self.add(call="x = F.normalize(x + 0.5, dim=-1) @ F.normalize(image + 0.5, dim=-1).T * 2.0")
            return self.finish("F.cross_entropy(x, torch.arange(x.shape[0], device=x.device))")
        self.add(
            f"self.both = nn.Linear({2 * self.width}, {self.width})",
            "x = self.both(torch.cat((image, x), 1))",
        )
        return self.classes()
