"""Models that benchmarks train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autopar.capture.target import ModelSource, load_target
from autopar.plan.decisions import Scalar

_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Subject:
    """A model to plan and to train.

    Attributes:
        file: below the repository.
        batch: samples per step.
    """

    file: str
    args: Mapping[str, Scalar]
    batch: int

    @property
    def target(self) -> str:
        """As ``load_target`` takes it."""
        return str(_ROOT / self.file)

    def load(self) -> ModelSource:
        """Its functions."""
        return load_target(self.target, self.args)
