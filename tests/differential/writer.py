"""Writing down a random model: names, inputs, and steps on sequences and vectors."""

from __future__ import annotations

import random
from typing import Any

from tests.differential.model_text import ModelText, Step


class Writer:
    """The model so far, and what has been drawn for all of it."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.steps: list[Step] = []
        self.entries: list[tuple[str, str]] = []
        self.seq_first: list[str] = []
        self.width = chance.choice((6, 8, 12, 16, 20, 24))
        self.seq = chance.choice((3, 4, 5, 6, 8))
        self.vocab = chance.choice((10, 12, 17, 24, 32))
        self.saved: list[str] = []
        self.linears: list[str] = []
        self.reusable: list[str] = []
        self.count = 0

    def name(self, word: str = "part") -> str:
        self.count += 1
        return f"{word}_{self.count}"

    def add(self, init: str = "", call: str = "", **facts: Any) -> None:
        lines = tuple(filter(None, init.split("\n"))), tuple(filter(None, call.split("\n")))
        self.steps.append(Step(*lines, **facts))

    def module(self, text: str, *, word: str = "part", removable: bool = True, value: str = "x") -> str:
        name = self.name(word)
        self.add(
            f"self.{name} = {text}",
            f"{value} = self.{name}({value})",
            makes=frozenset({name}),
            is_removable=removable,
        )
        return name

    def finish(self, loss: str, outside: bool = False) -> ModelText:
        return ModelText(tuple(self.steps), tuple(self.entries), loss, tuple(self.seq_first), outside)

    def tokens(self, key: str, value: str = "x", table: str | None = None) -> str:
        self.entries.append(
            (key, f"torch.randint(0, {self.vocab}, (batch_size, {self.seq}), generator=draw)")
        )
        if table is not None:
            self.add(call=f"{value} = self.{table}({key})", needs=frozenset({table}))
            return table
        name = self.name("embed")
        padding = self.chance.choice(("", "", ", padding_idx=0"))
        self.add(
            f"self.{name} = nn.Embedding({self.vocab}, {self.width}{padding})",
            f"{value} = self.{name}({key})",
            makes=frozenset({name}),
        )
        return name

    def features(self, key: str) -> None:
        size = self.chance.choice((5, 8, 9))
        if self.chance.random() < 0.4:
            self.seq_first.append(key)
            self.entries.append((key, f"torch.randn({self.seq}, batch_size, {size}, generator=draw)"))
            self.add(call=f"x = {key}.transpose(0, 1)")
        else:
            self.entries.append((key, f"torch.randn(batch_size, {self.seq}, {size}, generator=draw)"))
            self.add(call=f"x = {key}")
        name = self.name("embed")
        self.add(f"self.{name} = nn.Linear({size}, {self.width})", f"x = self.{name}(x)")
