"""What the search over meshes deals in: a job, a candidate for it, and the choices that it has per block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from autopar.cost.choice import BlockChoice
from autopar.cost.layout import Layout, SharedParameter
from autopar.cost.prediction import Prediction
from autopar.hardware.cluster import Cluster
from autopar.plan.bounds import Bound, StageSize, size_of_stage
from autopar.plan.decisions import MESH_AXES, Precision, ScheduleName

# Degrees of the pipeline, data and tensor axes; what the host holds.
Degrees: TypeAlias = tuple[int, int, int]
Offload: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked for, the same for every candidate.

    Attributes:
        memory_limit_bytes: of a device.
        first_blocks: first block of every stage, if pinned.
        stage_sizes: how many blocks stages may hold, where they are not.
    """

    cluster: Cluster
    precision: Precision
    optimizer: str
    global_batch: int
    memory_limit_bytes: int
    first_blocks: tuple[int, ...] | None = None
    stage_sizes: tuple[StageSize, ...] = ()

    def sizes(self, num_stages: int) -> tuple[Bound, ...]:
        """The bound on the blocks of every stage; empty: none."""
        if not self.stage_sizes:
            return ()
        found = (size_of_stage(self.stage_sizes, stage, num_stages) for stage in range(num_stages))
        return tuple(bound or _NOTHING for bound in found)


_NOTHING = Bound(1, 0)


@dataclass(frozen=True, slots=True, order=True)
class Family:
    """What decides the tables: degrees and micro-batch; its candidates differ in how they run these."""

    pipeline: int
    tensor: int
    data: int
    num_micro_batches: int
    micro_batch: int

    @property
    def family(self) -> Family:
        """Itself, as what is made of it says."""
        return self

    @property
    def mesh(self) -> tuple[int, int, int]:
        """(pipeline, data, tensor)."""
        return self.pipeline, self.data, self.tensor

    @property
    def tensor_stride(self) -> int:
        """Distance in ranks between neighbours on the tensor axis, in the usual order."""
        return 1


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """One setting of the outer decisions; ordered from simple to involved, which settles ties.

    Attributes:
        zero: level of every stage.
        virtual: stages of a rank.
        order: axes of the mesh, slowest first.
        shard_group: ranks of the data axis among which ZeRO divides; 0: all of them.
        offload: what lives in host memory.
    """

    pipeline: int
    tensor: int
    data: int
    num_micro_batches: int
    micro_batch: int
    zero: tuple[int, ...]
    schedule: ScheduleName
    virtual: int = 1
    order: tuple[str, ...] = MESH_AXES
    shard_group: int = 0
    offload: Offload = ()

    @property
    def mesh(self) -> tuple[int, int, int]:
        """(pipeline, data, tensor)."""
        return self.pipeline, self.data, self.tensor

    @property
    def num_stages(self) -> int:
        """Stages in all."""
        return self.pipeline * self.virtual

    @property
    def num_actions(self) -> int:
        """Forwards and backwards of its schedule, over all ranks."""
        return 2 * self.num_stages * self.num_micro_batches

    @property
    def family(self) -> Family:
        """Degrees and micro-batch."""
        return Family(self.pipeline, self.tensor, self.data, self.num_micro_batches, self.micro_batch)

    @property
    def tensor_stride(self) -> int:
        """Distance in ranks between neighbours on the tensor axis."""
        sizes = {"pipeline": self.pipeline, "data": self.data, "tensor": self.tensor}
        inside = self.order[self.order.index("tensor") + 1 :]
        return math.prod(sizes[axis] for axis in inside)


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

    def tables(
        self, tensor: int, micro_batch: int, tensor_stride: int = 1, *, thorough: bool = False
    ) -> tuple[ChoiceTable, ...]:
        """The choices; one table for every joint placement of the tied parameters.

        Args:
            thorough: whether what is near the best of every block is among them as well.
        """
        ...

    def floor_s(self, tensor: int, micro_batch: int) -> float:
        """Least seconds of all blocks for a micro-batch, forward and backward, known without tables."""
        ...


def tables_of(choices: Choices, item: Candidate | Family) -> tuple[ChoiceTable, ...]:
    """The tables that a candidate runs, or a family whose tensor axis is the innermost."""
    return choices.tables(item.tensor, item.micro_batch, item.tensor_stride)


@dataclass(frozen=True, slots=True)
class MeshSolution:
    """The best way found of running a candidate.

    Attributes:
        choices: of every block, in order.
        bound_s: no way of running the candidate has a shorter step.
        table: which of the tables.
        memory_binds: whether more memory could make it quicker.
    """

    candidate: Candidate
    layout: Layout
    choices: tuple[BlockChoice, ...]
    prediction: Prediction
    bound_s: float
    table: int
    memory_binds: bool = True

    @property
    def step_s(self) -> float:
        """Predicted."""
        return self.prediction.step_time_s

    @property
    def rank(self) -> tuple[float, Offload, Candidate]:
        """Quicker first; of equally quick ones the simpler."""
        return self.step_s, self.candidate.offload, self.candidate


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Why a candidate does not fit: the stage that misses most, at its leanest.

    Attributes:
        missing_bytes: beyond the limit.
        bound_s: no plan of the candidate has a shorter step; infinite where it is proved that there is none.
    """

    candidate: Candidate
    stage: int
    missing_bytes: int
    bound_s: float = float("inf")


@dataclass(frozen=True, slots=True)
class Alternative:
    """A runner-up.

    Attributes:
        prediction: None where it does not fit.
        why_not: in a few words, with numbers.
        layout: of its plan; None where it does not fit.
    """

    candidate: Candidate
    prediction: Prediction | None
    why_not: str
    layout: Layout | None = None


@dataclass(frozen=True, slots=True)
class Considered:
    """A candidate that a search looked at.

    Attributes:
        step_s: of its best plan; where none fits, a guess of what it would take.
        peak_bytes: likewise; where none fits, the least that it was found to need.
        fits: whether there is a plan.
        is_solved: whether the best of it was looked for; else time and memory are those of a simple recipe.
    """

    candidate: Candidate
    step_s: float
    peak_bytes: int
    fits: bool
    is_solved: bool = True


@dataclass(frozen=True, slots=True)
class BaselineFound:
    """The best plan of a kind that people write by hand.

    Attributes:
        solution: None where none fits.
        recompute: the one word for all blocks.
        why_not: where none fits.
    """

    name: str
    solution: MeshSolution | None
    recompute: str | None
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What the search found.

    Attributes:
        best: by predicted step time.
        bound_s: no candidate is predicted to be quicker.
        gap: (best - bound) / best; 0 when optimal.
        num_candidates: outer settings considered.
        num_solved: of these, solved; the others were cut.
        considered: what was found out about those that were not cut.
    """

    best: MeshSolution
    bound_s: float
    gap: float
    num_candidates: int
    num_solved: int
    alternatives: tuple[Alternative, ...] = ()
    baselines: tuple[BaselineFound, ...] = ()
    considered: tuple[Considered, ...] = ()
