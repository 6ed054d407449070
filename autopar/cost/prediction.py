"""What a plan is predicted to do: step time, and time and memory of every stage. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Peak memory of one rank of a stage, bytes by purpose."""

    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    transient_bytes: int
    reserved_bytes: int

    @property
    def total_bytes(self) -> int:
        """Sum over the purposes."""
        return (
            self.parameters_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.activations_bytes
            + self.transient_bytes
            + self.reserved_bytes
        )


@dataclass(frozen=True, slots=True)
class StagePrediction:
    """One stage over one step: computing, exposed communication, idle (bubble); they add up to the step."""

    compute_s: float
    comm_s: float
    idle_s: float
    memory: StageMemory


@dataclass(frozen=True, slots=True)
class Prediction:
    """A whole plan.

    Attributes:
        mfu: model FLOPs / (step time x devices x peak); forward + backward = 3x forward FLOPs, recompute not
            counted.
    """

    step_time_s: float
    samples_per_s: float
    mfu: float
    peak_memory_bytes: int
    memory_limit_bytes: int
    stages: tuple[StagePrediction, ...]

    @property
    def fits(self) -> bool:
        """Whether every stage stays within the limit."""
        return self.peak_memory_bytes <= self.memory_limit_bytes
