"""A model as Python text: a chain of steps of which most can be left out, for shrinking.

A step is a few lines of ``__init__`` and of ``forward``. The running value is ``x``; a step may keep it under
another name, for later ones to read.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

_HEAD = """\
import torch
import torch.nn.functional as F
from torch import nn

from tests.differential.pieces import *
from tests.differential.pieces import pairs
"""


@dataclass(frozen=True)
class Step:
    """Attributes: init, call: lines; makes, needs: names of values and modules that steps share."""

    init: tuple[str, ...] = ()
    call: tuple[str, ...] = ()
    makes: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    is_removable: bool = False


@dataclass(frozen=True)
class ModelText:
    """Attributes: entries: batch key -> expression of its value; seq_first: keys whose samples are dim 1."""

    steps: tuple[Step, ...]
    entries: tuple[tuple[str, str], ...]
    loss: str
    seq_first: tuple[str, ...] = ()
    loss_outside: bool = False

    @property
    def source(self) -> str:
        """The model file."""
        init = [line for step in self.steps for line in step.init]
        call = [line for step in self.steps for line in step.call]
        labels = ["labels"] if self.loss_outside else []
        keys = [key for key, _ in self.entries if key not in labels]
        end = "return x" if self.loss_outside else f"return {self.loss}"
        parts = [
            _HEAD,
            "\nclass Model(nn.Module):",
            "    def __init__(self):",
            textwrap.indent("\n".join(["super().__init__()", *init]), " " * 8),
            f"\n    def forward(self, {', '.join(keys)}):",
            textwrap.indent("\n".join([*call, end]), " " * 8),
            "\n\ndef build_model():\n    return Model()\n",
            "\ndef example_batch(batch_size):",
            "    draw = torch.Generator().manual_seed(batch_size)\n    return {",
            *(f"        {key!r}: {value}," for key, value in self.entries),
            "    }\n",
        ]
        if self.loss_outside:
            parts.append(f"\ndef loss(x, batch):\n    labels = batch['labels']\n    return {self.loss}\n")
        if self.seq_first:
            parts.append(f"\nbatch_dims = {dict.fromkeys(self.seq_first, 1)}\n")
        return "\n".join(parts)

    def without(self, index: int) -> ModelText | None:
        """One step less, with all that needs it; None where that cannot be."""
        gone, lost, steps = False, set(self.steps[index].makes), []
        for position, step in enumerate(self.steps):
            if position == index or step.needs & lost:
                if not step.is_removable:
                    return None
                lost |= step.makes
                gone = True
                continue
            steps.append(step)
        return (
            ModelText(tuple(steps), self.entries, self.loss, self.seq_first, self.loss_outside)
            if gone
            else None
        )
