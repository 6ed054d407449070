"""One piece of a pipeline step: what a rank does with a micro-batch on one of its stages."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class ActionKind(StrEnum):
    """What a rank does with a micro-batch.

    ``BACKWARD`` is the whole backward pass; zero-bubble schedules split it into the gradients of the stage's
    input, on which the stage before waits, and those of its weights, on which nobody does.
    """

    FORWARD = "F"
    BACKWARD = "B"
    INPUT_BACKWARD = "I"
    WEIGHT_BACKWARD = "W"

    @property
    def words(self) -> str:
        """For people."""
        return self.name.lower().replace("_", " ")


class Action(NamedTuple):
    """One piece of work of a rank. A tuple, because the search makes them by the hundred thousand.

    Attributes:
        stage: index over all stages of the pipeline, in the order of the model.
        micro_batch: index within the step.
    """

    kind: ActionKind
    stage: int
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind.value}{self.micro_batch}"
