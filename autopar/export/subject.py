"""What an exporter reads: the plan, and of the model what the target's words are about."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from autopar.capture.capture import Capture, capture
from autopar.capture.fake_model import build_fake_model, new_fake_mode
from autopar.capture.model_graph import InputKind
from autopar.capture.target import ModelSource
from autopar.lower.resolve import ResolvedPlan, resolve
from autopar.plan.decisions import Plan, Recompute
from autopar.sharding.placement import REPLICATE, Placement


@dataclass(frozen=True, slots=True)
class ExportedBlock:
    """A block of the chain.

    Attributes:
        module_class: name of its class, where the block is one module of the model; else "".
        output_word: what flows out: ``replicate``, ``sequence``, ``batch``, ``shard(d)``.
        is_layer: whether it is one of the repeated layers.
    """

    name: str
    module_class: str
    stage: int
    recompute: Recompute
    output_word: str
    is_layer: bool


@dataclass(frozen=True, slots=True)
class ExportedParameter:
    """A parameter.

    Attributes:
        module: name of the module that holds it.
        module_class: of that module, e.g. ``Linear``.
        shape: of the whole tensor.
        fused_dims: dim -> number of equal parts that are fused along it.
        stages: that read it, ascending.
    """

    name: str
    module: str
    module_class: str
    shape: tuple[int, ...]
    placement: Placement
    fused_dims: Mapping[int, int]
    stages: tuple[int, ...]

    @property
    def num_dims(self) -> int:
        """Of the whole tensor."""
        return len(self.shape)

    @property
    def is_sharded(self) -> bool:
        """Whether the tensor axis divides it."""
        return self.placement != REPLICATE


@dataclass(frozen=True, slots=True)
class ExportedEntry:
    """An entry of a batch.

    Attributes:
        shape: of one sample, without the dim that counts samples.
        batch_dim: which counts samples; None: the entry is the same for all.
        position: among the arguments of ``forward``, from 0; None where it is none of them.
        is_read_late: whether the model, and not only its loss, reads it behind the first stage.
    """

    name: str
    shape: tuple[int, ...]
    batch_dim: int | None
    position: int | None
    is_read_late: bool = False


@dataclass(frozen=True, slots=True)
class Subject:
    """A complete plan beside its model.

    Attributes:
        plan: complete; what a plan need not say is filled in.
        blocks: the chain.
        parameters: each once, under its first name.
        batch: its entries, in order.
        model_class: name of the model's class.
        settings: of a model of transformers, the fields of its configuration that the plan's arguments set;
            None for other models.
    """

    plan: Plan
    blocks: tuple[ExportedBlock, ...]
    parameters: tuple[ExportedParameter, ...]
    batch: tuple[ExportedEntry, ...]
    model_class: str
    settings: Mapping[str, object] | None

    @property
    def is_hugging_face(self) -> bool:
        """Whether the model is one of transformers."""
        return self.settings is not None

    @property
    def degrees(self) -> tuple[int, int, int]:
        """Pipeline, data, tensor."""
        mesh = self.plan.mesh
        return mesh.pipeline or 1, mesh.data or 1, mesh.tensor or 1

    @property
    def num_stages(self) -> int:
        """Pipeline degree x virtual stages."""
        return len(self.plan.stages or ((),))

    @property
    def layers(self) -> tuple[ExportedBlock, ...]:
        """The repeated layers."""
        return tuple(block for block in self.blocks if block.is_layer)

    @property
    def layers_of_stages(self) -> tuple[int, ...]:
        """Number of layers in every stage."""
        counts = Counter(block.stage for block in self.layers)
        return tuple(counts[stage] for stage in range(self.num_stages))

    @property
    def zero_levels(self) -> tuple[int, ...]:
        """ZeRO level of every stage."""
        zero = self.plan.zero or 0
        return zero if isinstance(zero, tuple) else (zero,) * self.num_stages

    @property
    def shard_group(self) -> int:
        """Data ranks among which ZeRO divides."""
        return self.plan.shard_group or self.degrees[1]

    @property
    def shared_by_stages(self) -> tuple[str, ...]:
        """Parameters that several stages read, e.g. an embedding that is the head too."""
        return tuple(one.name for one in self.parameters if len(one.stages) > 1)

    @property
    def has_sequence(self) -> bool:
        """Whether what flows between layers is divided by sequence."""
        return any(block.output_word == "sequence" for block in self.layers)


def subject_of(plan: Plan, source: ModelSource, captured: Capture | None = None) -> Subject:
    """Binds a complete plan to its model and looks up what exporters need.

    Raises:
        PlanError: the plan is incomplete, or not for this model.
        CaptureError: the model cannot be captured.
    """
    captured = captured or capture(source, torch.float32)
    resolved = resolve(plan, captured.at(plan.micro_batch or 1))
    model = build_fake_model(source.build_model, new_fake_mode(), torch.float32)
    classes = {name: type(module).__name__ for name, module in model.named_modules()}
    return Subject(
        plan=plan,
        blocks=_blocks(resolved, classes, {name for name, m in model.named_modules() if any(m.children())}),
        parameters=_parameters(resolved, classes),
        batch=_entries(source, model, resolved),
        model_class=type(model).__name__,
        settings=_settings(source, model),
    )


def _entries(source: ModelSource, model: nn.Module, resolved: ResolvedPlan) -> tuple[ExportedEntry, ...]:
    arguments = list(inspect.signature(model.forward).parameters)
    late = {
        item.source
        for decision in resolved.blocks
        if decision.stage and decision.block.name != "loss"
        for item in decision.block.inputs
        if item.kind is InputKind.BATCH
    }
    found = []
    for name, value in source.example_batch(1).items():
        dim = source.batch_dims.get(name, 0)
        shape = tuple(value.shape) if dim is None else (*value.shape[:dim], *value.shape[dim + 1 :])
        position = arguments.index(name) if name in arguments else None
        found.append(ExportedEntry(name, shape, dim, position, name in late))
    return tuple(found)


def _settings(source: ModelSource, model: nn.Module) -> Mapping[str, object] | None:
    if not type(model).__module__.startswith("transformers."):
        return None
    config = model.config
    return {name: getattr(config, name) for name in source.args if hasattr(config, name)}


def _blocks(
    resolved: ResolvedPlan, classes: Mapping[str, str], composed: Collection[str]
) -> tuple[ExportedBlock, ...]:
    # Layers are what is repeated: modules made of others that share their class with another block.
    counts = Counter(classes[d.block.name] for d in resolved.blocks if d.block.name in composed)
    return tuple(
        ExportedBlock(
            name=decision.block.name,
            module_class=classes.get(decision.block.name, ""),
            stage=decision.stage,
            recompute=decision.recompute,
            output_word=decision.output_word,
            is_layer=decision.block.name in composed and counts[classes[decision.block.name]] > 1,
        )
        for decision in resolved.blocks
    )


def _parameters(resolved: ResolvedPlan, classes: Mapping[str, str]) -> tuple[ExportedParameter, ...]:
    found = []
    readers: dict[str, set[int]] = {}
    for decision in resolved.blocks:
        for item in decision.block.inputs:
            readers.setdefault(item.source, set()).add(decision.stage)
    for name, spec in resolved.graph.parameters.items():
        module = name.rpartition(".")[0]
        found.append(
            ExportedParameter(
                name=name,
                module=module,
                module_class=classes.get(module, ""),
                shape=tuple(int(size) for size in spec.spec.shape),
                placement=resolved.parameter_placements.get(name, REPLICATE),
                fused_dims=dict(spec.fused_dims or {}),
                stages=tuple(sorted(readers.get(name, ()))),
            )
        )
    return tuple(found)
