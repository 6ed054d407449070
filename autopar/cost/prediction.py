"""What a plan is predicted to do: step time, and time and memory of every stage. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Peak memory of one rank of a stage, bytes by purpose.

    Attributes:
        host_bytes: of it alone, in the memory of its host: what is offloaded.
    """

    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    transient_bytes: int
    reserved_bytes: int
    host_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Sum over the purposes, on the device."""
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
    """One position of the pipeline axis over one step, all its stages together: computing, exposed
    communication, idle (bubble); they add up to the step."""

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
        peak_memory_bytes: of the fullest device.
        memory_limit_bytes: of a device.
        stages: one for each position on the pipeline axis; more than one stage in each where ranks hold
            virtual stages.
        peak_host_bytes: of host memory, of the rank that needs most.
        host_limit_bytes: host memory that each device of a node can count on.
    """

    step_time_s: float
    samples_per_s: float
    mfu: float
    peak_memory_bytes: int
    memory_limit_bytes: int
    stages: tuple[StagePrediction, ...]
    peak_host_bytes: int = 0
    host_limit_bytes: int = 0

    @property
    def fits(self) -> bool:
        """Whether every rank stays within the memory of its device and its share of the host's."""
        return self.peak_memory_bytes <= self.memory_limit_bytes and (
            self.peak_host_bytes <= self.host_limit_bytes
        )
