"""A whole plan as the step-time model reads it: every block's choice, stage by stage. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from autopar.cost.choice import BlockChoice
from autopar.plan.decisions import MESH_AXES, Precision, ScheduleName, stride


@dataclass(frozen=True, slots=True)
class SharedParameter:
    """A parameter that several blocks read (tied weights).

    A stage that holds several of these blocks holds the parameter once; stages that hold one each keep a copy
    each and add up its gradients at the end of the step.

    Attributes:
        name: canonical name.
        blocks: indices in the chain of the blocks that read it, ascending.
        num_elements: of one rank's piece on the tensor axis.
        trainable: whether it has a gradient.
    """

    name: str
    blocks: tuple[int, ...]
    num_elements: int
    trainable: bool = True


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything that decides the time and the memory of a step.

    Attributes:
        pipeline: ranks on the pipeline axis.
        data: ranks on the data axis.
        tensor: ranks on the tensor axis.
        micro_batch: samples per forward of one data rank.
        num_micro_batches: forwards per step of one data rank.
        virtual: stages per rank.
        zero: ZeRO level of each stage.
        precision: compute dtype; masters, gradients and optimiser state are fp32.
        optimizer: ``adamw``, ``adam``, ``sgd`` or ``sgd-momentum``.
        stages: choices of the blocks of each of the ``pipeline x virtual`` stages, in order of the chain.
        shared: parameters that several blocks read.
        carried_bytes: per stage boundary, local bytes of values that an earlier block than the last of the
            stage computed and that a later stage reads; empty where nothing skips blocks.
        order: the axes of the mesh, slowest varying first.
        shard_group: ranks of the data axis among which ZeRO divides; 0: all of them.
        offload: what lives in host memory: of ``optimizer``, ``parameters``, ``activations``.
    """

    pipeline: int
    data: int
    tensor: int
    micro_batch: int
    num_micro_batches: int
    schedule: ScheduleName
    virtual: int
    zero: tuple[int, ...]
    precision: Precision
    optimizer: str
    stages: tuple[tuple[BlockChoice, ...], ...]
    shared: tuple[SharedParameter, ...] = ()
    carried_bytes: tuple[int, ...] = ()
    order: tuple[str, ...] = MESH_AXES
    shard_group: int = 0
    offload: tuple[str, ...] = ()

    def stride(self, axis: str) -> int:
        """Distance in ranks between neighbours on an axis."""
        sizes = {"pipeline": self.pipeline, "data": self.data, "tensor": self.tensor}
        return stride(sizes, self.order, axis)

    @property
    def num_devices(self) -> int:
        """Product of the axes."""
        return self.pipeline * self.data * self.tensor

    @property
    def global_batch(self) -> int:
        """Samples per step."""
        return self.micro_batch * self.num_micro_batches * self.data

    @property
    def first_blocks(self) -> tuple[int, ...]:
        """Index in the chain of every stage's first block."""
        return tuple(accumulate((len(blocks) for blocks in self.stages[:-1]), initial=0))

    def holders(self, parameter: SharedParameter) -> tuple[int, ...]:
        """Stages that hold a shared parameter, ascending."""
        result, first = [], 0
        for stage, blocks in enumerate(self.stages):
            end = first + len(blocks)
            if any(first <= block < end for block in parameter.blocks):
                result.append(stage)
            first = end
        return tuple(result)

    def boundary_bytes(self, boundary: int) -> int:
        """Local bytes sent per micro-batch from stage ``boundary`` to the next."""
        carried = self.carried_bytes[boundary] if self.carried_bytes else 0
        return self.stages[boundary][-1].output_bytes + carried
