"""Steps on (batch, seq, width) and (batch, width)."""

from __future__ import annotations

from tests.differential.writer import Writer


class Sequences(Writer):
    """Writes layers of transformers and recurrent models, and of classifiers behind them."""

    def norm(self) -> str:
        w = self.width
        options = [
            f"nn.LayerNorm({w})", f"nn.LayerNorm({w})", f"nn.RMSNorm({w})", f"PlainRMSNorm({w})",
            f"nn.LayerNorm({w}, bias=False)", f"nn.LayerNorm({w}, elementwise_affine=False)",
            f"Transposed(nn.BatchNorm1d({w}))", f"Transposed(nn.GroupNorm(2, {w}))",
            f"nn.LayerNorm(({self.seq}, {w}))", f"Transposed(nn.InstanceNorm1d({w}, affine=True))",
        ]  # fmt: skip
        return self.chance.choice(options)

    def heads(self) -> int:
        return self.chance.choice([h for h in (1, 2, 3, 4) if self.width % (2 * h) == 0])

    def inner(self, causal: bool) -> str:
        w, pick = self.width, self.chance.choice
        heads, hidden = self.heads(), pick((2 * self.width, 4 * self.width, self.width + 4, 3 * self.width))
        form, activation = pick(("sdpa", "softmax", "einsum")), pick(("gelu", "relu", "silu", "tanh"))
        bias, groups = pick((True, False)), pick([g for g in range(1, heads + 1) if heads % g == 0])
        options = [
            f"Attention({w}, {heads}, fused=True, form={form!r}, causal={causal}, bias={bias})",
            f"Attention({w}, {heads}, {groups}, form={form!r}, causal={causal})",
            f"Attention({w}, {heads}, form={form!r}, causal={causal}, bias={bias})",
            f"MLP({w}, {hidden}, {activation!r}, bias={bias})",
            f"MLP({w}, {hidden}, {activation!r})",
            f"GatedMLP({w}, {hidden}, {activation!r}, fused={pick((True, False))})",
            f"Experts({w}, {hidden}, {pick((2, 3, 4))}, {pick((1, 2))})",
            f"SlottedExperts({w}, {pick((2, 4))})",
            f"RotaryAttention({w}, {heads}, {self.seq})",
        ]
        if not causal:
            options.append(f"TorchAttention({w}, {heads})")
            options.append(f"Transposed(nn.Linear({self.seq}, {self.seq}))")
            options.append(f"Transposed(nn.Conv1d({w}, {w}, 3, padding=1, groups={pick((1, 2, w))}))")
        return pick(options)

    def rearranged(self) -> str:
        forms = ["roll", "flip", "rotate", "shift", "regroup", "tokens", "center", "normalise", "cumulate",
                 "unbind", "swap", "mask", "clamp", "gather", "halves", "interleave", "sort"]  # fmt: skip
        return f"Rearranged({self.chance.choice(forms)!r})"

    def sequence(self, num: int, causal: bool = False) -> None:
        repeated = self.inner(causal) if self.chance.random() < 0.5 else None
        for _ in range(num):
            self.sequence_step(repeated, causal)

    def sequence_step(self, repeated: str | None, causal: bool) -> None:
        w, pick, roll = self.width, self.chance.choice, self.chance.random()
        if roll < 0.45:
            flags = pick(("", ", after=True", ", in_place=True"))
            text = f"Residual({self.norm()}, {repeated or self.inner(causal)}{flags})"
            self.reusable.append(self.module(text, word="layer"))
        elif roll < 0.55:
            self.module(self.rearranged())
        elif roll < 0.61:
            self.module(f"Product({w}, {pick(('einsum', 'matmul', 'transposed', 'addmm'))!r})")
        elif roll < 0.67:
            self.linears.append(
                self.module(f"nn.Linear({w}, {w}, bias={pick((True, False))})", word="linear")
            )
        elif roll < 0.71 and self.linears:
            other, name = pick(self.linears), self.name("tied")
            self.add(
                f"self.{name} = nn.Linear({w}, {w})\nself.{name}.weight = self.{other}.weight",
                f"x = x + self.{name}(x)",
                makes=frozenset({name}), needs=frozenset({other}), is_removable=True,
            )  # fmt: skip
        elif roll < 0.76 and self.reusable:
            other = pick(self.reusable)
            self.add(call=f"x = self.{other}(x)", needs=frozenset({other}), is_removable=True)
        elif roll < 0.82:
            self.module(f"Scale({w}, learned={pick((True, False))})")
        elif roll < 0.86:
            self.module(self.norm(), word="norm")
        elif roll < 0.90 and not causal:
            self.module(f"Recurrent({pick(('LSTM', 'GRU'))!r}, {w}, {pick((1, 2))})")
        elif roll < 0.94 or not self.saved:
            name = self.name("kept")
            self.add(call=f"{name} = x", makes=frozenset({name}), is_removable=True)
            self.saved.append(name)
        else:
            other, name = pick(self.saved), self.name("joined")
            if self.chance.random() < 0.5:
                self.add(call=f"x = x + {other} * 0.5", needs=frozenset({other}), is_removable=True)
            else:
                self.add(
                    f"self.{name} = nn.Linear({2 * w}, {w})",
                    f"x = self.{name}(torch.cat((x, {other}), -1))",
                    needs=frozenset({other}), is_removable=True,
                )  # fmt: skip

    def pool(self) -> None:
        form = self.chance.choice(
            ("x.mean(1)", "x[:, 0]", "x[:, -1]", "x.amax(1)", "x.sum(dim=1) / 3", "x.flatten(1)")
        )
        if "flatten" not in form:
            self.add(call=f"x = {form}")
            return
        name = self.name("flat")
        self.add(
            f"self.{name} = nn.Linear({self.width * self.seq}, {self.width})", f"x = self.{name}({form})"
        )

    def flat(self, num: int) -> None:
        for _ in range(num):
            w, pick = self.width, self.chance.choice
            text = pick((
                f"nn.Sequential(nn.Linear({w}, {2 * w}), nn.ReLU(), nn.Linear({2 * w}, {w}))",
                f"Residual(nn.LayerNorm({w}), MLP({w}, {3 * w}))",
                f"Residual(nn.BatchNorm1d({w}), nn.Linear({w}, {w}), nn.Tanh())",
                f"nn.Sequential(nn.Linear({w}, {w}), nn.BatchNorm1d({w}), nn.ReLU(True), nn.Dropout(0.1))",
                f"GatedMLP({w}, {w + 2})",
                f"nn.Sequential(nn.Linear({w}, {w}), nn.PReLU(), nn.LayerNorm({w}))",
            ))  # fmt: skip
            self.module(text, word="flat")
