"""The plan as data: every decision that a plan file can hold, absent where the solver is free.

One type serves whole plans and partial ones: a partial plan is a set of constraints (``--with``, ``--set``),
a complete plan leaves nothing to decide. Reading, writing and merging live in their own modules here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import prod

from autopar.errors import PlanError, place_text
from autopar.hardware.yaml_lines import Place
from autopar.plan.bounds import Bound, StageSize

Scalar = str | int | float | bool | None

MESH_AXES = ("pipeline", "data", "tensor")
"""The axes of the mesh in the usual order: the last varies fastest and stays inside a node."""

PATTERN_SECTIONS = ("tensor", "activations", "operators", "recompute")
"""The decisions that are lines from patterns of names to words, in the order of the file."""


def stride(sizes: Mapping[str, int], order: Sequence[str], axis: str) -> int:
    """Distance in ranks between neighbours on an axis of a mesh: the product of the axes that vary faster."""
    return prod(sizes[inner] for inner in order[order.index(axis) + 1 :])


class ScheduleName(StrEnum):
    """Pipeline schedules of the plan language."""

    GPIPE = "gpipe"
    ONE_F_ONE_B = "1f1b"
    INTERLEAVED = "interleaved"
    ZERO_BUBBLE = "zero-bubble"
    ZBV = "zbv"


class Recompute(StrEnum):
    """What a block's backward computes again instead of keeping it."""

    NONE = "none"
    SELECTIVE = "selective"
    FULL = "full"


class Precision(StrEnum):
    """Compute dtype; parameters, gradients and optimiser state are fp32 masters in every case."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"


@dataclass(frozen=True, slots=True)
class ModelReference:
    """Which model a plan is for: its target as typed, its arguments, a hash of its graph."""

    source: str
    args: Mapping[str, Scalar] = field(default_factory=dict)
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class ClusterReference:
    """Which devices a plan is for.

    Attributes:
        device: name of a cost model, or path of its file.
        file: the cluster file that says how the devices are joined; None: as the cost model says.
        memory_limit_bytes: of a device, where a plan may not use all that it has.
    """

    device: str
    nodes: int
    devices_per_node: int
    file: str | None = None
    memory_limit_bytes: int | None = None

    @property
    def num_devices(self) -> int:
        """Devices in all."""
        return self.nodes * self.devices_per_node


@dataclass(frozen=True, slots=True)
class Mesh:
    """Degrees of the three axes, and which of them lies inside a node.

    Attributes:
        order: the axes from the one that varies slowest over the ranks to the one that varies fastest (ranks
            fill nodes in order); None: the solver's, and ``MESH_AXES`` where a plan that runs does not say.
    """

    pipeline: int | None = None
    data: int | None = None
    tensor: int | None = None
    order: tuple[str, str, str] | None = None

    def stride(self, axis: str) -> int:
        """Distance in ranks between neighbours on an axis; needs all degrees."""
        assert self.pipeline and self.data and self.tensor
        sizes = {"pipeline": self.pipeline, "data": self.data, "tensor": self.tensor}
        return stride(sizes, self.order or MESH_AXES, axis)


@dataclass(frozen=True, slots=True)
class PatternLine:
    """One line of a pattern section such as ``tensor``: the first that matches a name wins.

    Attributes:
        pattern: a module, parameter or block name; ``*`` matches one component, ``blocks.0-5`` a range. It
            also matches everything inside the module that it names, so ``"*"`` alone matches every name.
        word: what the line says, e.g. ``column``, ``sequence``, ``full``.
        line: line number in the plan file, for messages; None when not read from a file.
    """

    pattern: str
    word: str
    line: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """All decisions. ``None``, or no lines in a pattern section, means: the solver's.

    Attributes:
        global_batch: samples per optimiser step = micro_batch x num_micro_batches x mesh.data.
        micro_batch: samples per forward of one data rank.
        stages: block names (ranges already expanded) of each pipeline stage, in order.
        tensor: parameter placements by pattern: ``column``, ``row``, ``vocab``, ``replicate``, ``shard(d)``.
        activations: what flows out of a block: ``replicate``, ``sequence``, ``batch``, ``shard(d)``.
        zero: ZeRO level of each stage (all equal unless the file gives a list); None: the solver's.
        shard_group: ranks of the data axis, next to each other on it, among which ZeRO divides state; it
            divides mesh.data, and data / shard_group groups hold replicas of each other (HSDP). None: the
            solver's, and the whole data axis where a plan that runs does not say.
        recompute: by block pattern; ``selective | full`` leaves the planner a choice between these.
        operators: choices of inner operators that differ from the deterministic propagation, by operator key
            (``module:operator#ordinal``), e.g. ``"shard(2), replicate -> shard(2)"``.
        optimizer: ``adamw``, ``adam``, ``sgd``, ``sgd-momentum``: state bytes per parameter.
        offload: ``none``, or what lives in host memory (``optimizer``, ``parameters``, ``activations``),
            joined by commas.
        stage_sizes: how many blocks stages may hold, where the cut is left to the planner.
        bounds: by dotted key (``mesh.tensor``), on numbers that are left to the planner.
        compile: whether torch.compile compiles what lies between the collectives; None: not.
        chosen: codes of the lines that the planner chose itself (``plan.hand_made``).
        path: file this was read from, for messages.
        places: of the dotted keys (``mesh.tensor``, ``pipeline.stages.1``, ``tensor.blocks.*.attn.qkv``) in
            that file.
        sources: of a merged plan, the dotted keys that do not come from ``path``, with ``file:line`` or
            ``--set mesh.tensor=4``.
    """

    version: int = 1
    model: ModelReference | None = None
    cluster: ClusterReference | None = None
    global_batch: int | None = None
    micro_batch: int | None = None
    mesh: Mesh = Mesh()
    precision: Precision | None = None
    optimizer: str | None = None
    schedule: ScheduleName | None = None
    virtual: int | None = None
    stages: tuple[tuple[str, ...], ...] | None = None
    tensor: tuple[PatternLine, ...] = ()
    activations: tuple[PatternLine, ...] = ()
    operators: tuple[PatternLine, ...] = ()
    zero: int | tuple[int, ...] | None = None
    shard_group: int | None = None
    recompute: tuple[PatternLine, ...] = ()
    offload: str | None = None
    compile: bool | None = None
    stage_sizes: tuple[StageSize, ...] = ()
    bounds: Mapping[str, Bound] = field(default_factory=dict)
    chosen: tuple[str, ...] = field(default=(), compare=False)
    path: str = field(default="", compare=False)
    places: Mapping[str, Place] = field(default_factory=dict, compare=False)
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    def error(self, key: str, message: str) -> PlanError:
        """An error about the decision under a dotted key, at its place or the nearest one around it."""
        near = self._nearest(key)
        if near in self.sources:
            return PlanError(message, path=self.sources[near], key=key)
        line, column = self.places.get(near) or (None, None)
        if not self.path:
            line = column = None
        return PlanError(message, path=self.path, line=line, column=column, key=key)

    def where(self, key: str) -> str:
        """Where a decision comes from: ``gpt.yaml:5:8`` or ``--set mesh.tensor=4``; empty if from nowhere."""
        near = self._nearest(key)
        if near in self.sources:
            return self.sources[near]
        return place_text(self.path, *self.places.get(near, ())) if self.path else ""

    def _nearest(self, key: str) -> str:
        while key and key not in self.sources and key not in self.places:
            key = key.rpartition(".")[0]
        return key

    @property
    def offloaded(self) -> tuple[str, ...]:
        """What lives in host memory: of ``optimizer``, ``parameters``, ``activations``."""
        return tuple(word for word in (self.offload or "none").split(",") if word != "none")

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches per step of one data rank; needs global_batch, micro_batch and mesh.data."""
        assert self.global_batch and self.micro_batch and self.mesh.data
        return self.global_batch // (self.micro_batch * self.mesh.data)
