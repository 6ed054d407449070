"""Which stage holds which parameters and buffers, and in what form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from autopar.capture.model_graph import InputKind, ModelGraph, ParameterSpec, TensorSpec
from autopar.lower.resolve import ResolvedPlan
from autopar.runtime.block_reads import buffer_reads, parameter_reads
from autopar.runtime.export import StateLayout
from autopar.runtime.initialise import InitialState
from autopar.runtime.storage import StoredParameter, store
from autopar.sharding.placement import REPLICATE, Placement


@dataclass(frozen=True)
class Holdings:
    """Who holds what, the same on every rank.

    Attributes:
        specs: of every parameter of the model, by canonical name.
        parameter_stages: canonical name -> stages that hold it, ascending.
        buffer_stages: buffer -> stages that hold it, ascending.
        buffer_dtypes: of every buffer of the model.
    """

    resolved: ResolvedPlan
    specs: Mapping[str, ParameterSpec]
    parameter_stages: Mapping[str, tuple[int, ...]]
    buffer_stages: Mapping[str, tuple[int, ...]]
    buffer_dtypes: Mapping[str, torch.dtype]

    def parameters_of(self, stage: int, degree: int) -> dict[str, StoredParameter]:
        """Stored forms of the parameters of a stage."""
        placements = self.resolved.parameter_placements
        return {
            name: store(spec, placements.get(name, REPLICATE), degree)
            for name, spec in self.specs.items()
            if stage in self.parameter_stages[name]
        }

    def buffers_of(self, stage: int, degree: int, initial: InitialState) -> dict[str, StoredParameter]:
        """Stored forms of the buffers of a stage."""
        placements: dict[str, Placement] = {}
        for decision in self.resolved.blocks:
            for entry in decision.block.inputs:
                if entry.kind is InputKind.BUFFER and decision.stage == stage:
                    placements[entry.source] = decision.sharding.placement_of(entry.placeholder)
        forms = {}
        for name, stages in self.buffer_stages.items():
            if stage in stages:
                value = initial.buffers[name]
                spec = ParameterSpec(name, TensorSpec(tuple(value.shape), value.dtype), False)
                forms[name] = store(spec, placements.get(name, REPLICATE), degree, is_buffer=True)
        return forms

    def layout(self, initial: InitialState, dtype: torch.dtype) -> StateLayout:
        """What the plain model's state dict holds, with parameters in ``dtype``."""
        specs = {name: TensorSpec(spec.spec.shape, dtype) for name, spec in self.specs.items()}
        for name, value in initial.buffers.items():
            if name in initial.persistent:
                specs[name] = TensorSpec(tuple(value.shape), self.buffer_dtypes[name])
        return StateLayout(specs, {name: spec.aliases for name, spec in self.specs.items()})


def find_holdings(resolved: ResolvedPlan, initial: InitialState) -> Holdings:
    """Reads off a plan what every stage holds; what no block reads belongs to the first."""
    graph = resolved.graph
    specs = _parameter_specs(graph, initial)
    parameters: dict[str, set[int]] = {name: set() for name in specs}
    buffers: dict[str, set[int]] = {name: set() for name in initial.buffers}
    for decision in resolved.blocks:
        for name in parameter_reads(decision.block):
            parameters[name].add(decision.stage)
        for name in buffer_reads(decision.block):
            buffers[name].add(decision.stage)
    return Holdings(
        resolved=resolved,
        specs=specs,
        parameter_stages={name: tuple(sorted(found)) or (0,) for name, found in parameters.items()},
        buffer_stages={name: tuple(sorted(found)) or (0,) for name, found in buffers.items()},
        buffer_dtypes={
            name: graph.buffers[name].dtype if name in graph.buffers else value.dtype
            for name, value in initial.buffers.items()
        },
    )


def _parameter_specs(graph: ModelGraph, initial: InitialState) -> dict[str, ParameterSpec]:
    # A parameter that the loss does not depend on is in no graph, but belongs to the model and its
    # checkpoints.
    return {
        name: graph.parameters.get(name)
        or ParameterSpec(name, TensorSpec(tuple(p.shape), p.dtype), p.requires_grad)
        for name, p in initial.parameters.items()
    }
