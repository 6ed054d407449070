"""What a caller of ``parallelize`` may choose besides the plan."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from autopar.errors import UsageError
from autopar.plan.decisions import Plan, Precision
from autopar.runtime.initialise import Init, Initialisation

_DTYPES = {
    Precision.BF16: torch.bfloat16,
    Precision.FP16: torch.float16,
    Precision.FP32: torch.float32,
}

_LONGEST_TIMEOUT_S = 1e9  # 30 years; torch counts in nanoseconds of 63 bits


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a run.

    Attributes:
        seed: of starting weights and dropout.
        init: how starting weights are drawn, or where they are.
        dtype: compute dtype instead of the plan's precision; parameters are float32, or float64 with float64.
        timeout_s: of every wait for another rank.
        device: where this rank computes; default: its GPU, else the CPU.
        profile: file for a trace of the second step, if there shall be one.

    Raises:
        UsageError: ``timeout_s`` is no time.
    """

    seed: int = 0
    init: Init = Initialisation.SEEDED
    dtype: torch.dtype | None = None
    timeout_s: float = 600.0
    device: torch.device | None = None
    profile: Path | None = None

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s <= _LONGEST_TIMEOUT_S:
            raise UsageError(
                f"timeout_s={self.timeout_s}: a wait for another rank lasts more than 0 and at most"
                f" {_LONGEST_TIMEOUT_S:.0e} seconds; leave it out for 600"
            )

    @property
    def init_text(self) -> str:
        """What ``init`` is, for messages and comparisons between ranks."""
        return "a state dict" if isinstance(self.init, Mapping) else str(self.init)

    def compute_dtype(self, plan: Plan) -> torch.dtype:
        """Dtype in which the programs compute."""
        return self.dtype or _DTYPES[plan.precision or Precision.FP32]

    def parameter_dtype(self, plan: Plan) -> torch.dtype:
        """Dtype of parameters, gradients and optimiser state."""
        return torch.float64 if self.compute_dtype(plan) is torch.float64 else torch.float32

    def choose_device(self) -> torch.device:
        """The device of this rank."""
        if self.device is not None:
            return self.device
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("cpu")
