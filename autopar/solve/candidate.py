"""What the search over meshes deals in: a job, a candidate for it, and the choices that it has per block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from autopar.cost.choice import BlockChoice
from autopar.cost.layout import Layout, SharedParameter
from autopar.cost.prediction import Prediction
from autopar.hardware.cluster import Cluster
from autopar.plan.decisions import Precision, ScheduleName


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked for, the same for every candidate.

    Attributes:
        memory_limit_bytes: of a device.
        first_blocks: first block of every stage, if pinned.
    """

    cluster: Cluster
    precision: Precision
    optimizer: str
    global_batch: int
    memory_limit_bytes: int
    first_blocks: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """One setting of the outer decisions; ordered from simple to involved, which settles ties.

    Attributes:
        zero: level of every stage.
    """

    pipeline: int
    tensor: int
    data: int
    num_micro_batches: int
    micro_batch: int
    zero: tuple[int, ...]
    schedule: ScheduleName

    @property
    def mesh(self) -> tuple[int, int, int]:
        """(pipeline, data, tensor)."""
        return self.pipeline, self.data, self.tensor


@dataclass(frozen=True, slots=True)
class ChoiceTable:
    """The choices of every block for one tensor degree and micro-batch.

    Attributes:
        kinds: choices of each kind of block.
        blocks: kind of every block of the chain.
        shared: parameters that several blocks read, as these choices place them.
        carried_bytes: per block, local bytes handed to later stages beside the block's own output, if a
            stage ends there.
    """

    kinds: tuple[tuple[BlockChoice, ...], ...]
    blocks: tuple[int, ...]
    shared: tuple[SharedParameter, ...]
    carried_bytes: tuple[int, ...]


class Choices(Protocol):
    """Where the search gets its numbers from; everything is computed when first asked for."""

    @property
    def num_blocks(self) -> int:
        """Length of the chain."""
        ...

    @property
    def trainable_elements(self) -> int:
        """Elements of all parameters with a gradient, unsharded."""
        ...

    def tables(self, tensor: int, micro_batch: int) -> tuple[ChoiceTable, ...]:
        """The choices; one table for every joint placement of the tied parameters."""
        ...

    def floor_s(self, tensor: int, micro_batch: int, effort: int) -> float:
        """Least seconds of all blocks for a micro-batch, forward and backward; tighter with more effort."""
        ...


@dataclass(frozen=True, slots=True)
class MeshSolution:
    """The optimum of a candidate.

    Attributes:
        choices: of every block, in order.
        objective_s: of the chain problem.
        bound_s: proven lower bound of it.
        table: which of the tables.
    """

    candidate: Candidate
    layout: Layout
    choices: tuple[BlockChoice, ...]
    prediction: Prediction
    objective_s: float
    bound_s: float
    table: int


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Why a candidate does not fit: the stage that misses most, at its leanest.

    Attributes:
        missing_bytes: beyond the limit.
    """

    candidate: Candidate
    stage: int
    missing_bytes: int


@dataclass(frozen=True, slots=True)
class Alternative:
    """A runner-up.

    Attributes:
        prediction: None where it does not fit.
        why_not: in a few words, with numbers.
    """

    candidate: Candidate
    prediction: Prediction | None
    why_not: str


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What the search found.

    Attributes:
        best: by predicted step time.
        bound_s: no candidate is predicted to be quicker.
        gap: (best - bound) / best; 0 when optimal.
        num_candidates: outer settings considered.
        num_solved: of these, solved to the end; the others were cut.
    """

    best: MeshSolution
    bound_s: float
    gap: float
    num_candidates: int
    num_solved: int
    alternatives: tuple[Alternative, ...] = ()
