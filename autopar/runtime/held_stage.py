"""A stage of a rank with what surrounds it: what it gets from its neighbours, what it hands on."""

from __future__ import annotations

from dataclasses import dataclass

from autopar.runtime.crossings import Crossing
from autopar.runtime.replicas import Replicas
from autopar.runtime.routes import Route
from autopar.runtime.stage import StageModule


@dataclass(frozen=True)
class HeldStage:
    """A stage of this rank, and what surrounds it.

    Attributes:
        index: over all stages of the pipeline.
        module: the programs.
        replicas: data parallelism of its parameters.
        received: values from the stage before, in the order in which they are sent.
        sent: values for the stage after, likewise.
        loss: global name of the loss when this is the last stage.
        route: what it runs.
        kept: names of outputs that the caller of a forward pass wants.
    """

    index: int
    module: StageModule
    replicas: Replicas
    received: tuple[Crossing, ...]
    sent: tuple[Crossing, ...]
    loss: str | None
    route: Route
    kept: tuple[str, ...] = ()

    @property
    def used(self) -> tuple[str, ...]:
        """What the stage reads itself of the values that it receives; the others pass through."""
        own = self.route.reads
        return tuple(crossing.name for crossing in self.received if crossing.name in own)

    @property
    def batch_keys(self) -> frozenset[str]:
        """Entries of the batch that the stage reads."""
        return self.route.batch_keys
