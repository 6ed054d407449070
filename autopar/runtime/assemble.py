"""Building one rank's stage from a resolved plan: programs, this rank's shards, data parallelism, links.

The order is the one in which the parts compose: lower on the tensor axis, blocks into a stage, recompute,
data parallelism, schedule. Parameters are made on the meta device and sharded there, so that memory is only
ever allocated for this rank's pieces; the starting weights then stream through, one whole parameter at a
time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autopar.capture.model_graph import InputKind, ModelGraph, ParameterSpec, TensorSpec
from autopar.lower.axis import FakeAxis, ProcessGroupAxis
from autopar.lower.block import lower_block
from autopar.lower.resolve import ResolvedPlan
from autopar.plan.decisions import Plan, Recompute, ScheduleName
from autopar.runtime.executor import Crossing, Executor
from autopar.runtime.gradients import TiedGradients
from autopar.runtime.initialise import InitialState
from autopar.runtime.links import Links
from autopar.runtime.mesh import RankMesh
from autopar.runtime.options import Options
from autopar.runtime.replicas import ComputeCopies, Replicas
from autopar.runtime.stage import (
    BlockProgram,
    StageModule,
    buffer_reads,
    mutated_buffers,
    parameter_reads,
    reads,
)
from autopar.runtime.storage import StoredParameter, local_tensor, store
from autopar.runtime.watchdog import Watchdog
from autopar.schedule.actions import schedule_actions
from autopar.sharding.placement import REPLICATE, Placement, local_shape


@dataclass(frozen=True)
class Assembly:
    """Everything that one rank runs.

    Attributes:
        stage: this rank's stage.
        executor: plays its actions.
        replicas: data parallelism of its parameters.
        copies: of its parameters in the compute dtype, if that differs and they are not sharded.
        tied: parameters that other stages hold too.
        parameter_stages: canonical name of every parameter of the model -> stages that hold it.
        buffer_forms: stored forms of this stage's buffers.
        buffer_stages: name of every buffer of the model -> first stage that holds it.
        persistent: names of the buffers that belong into a state dict.
        aliases: canonical name -> its other names.
    """

    stage: StageModule
    executor: Executor
    replicas: Replicas
    copies: ComputeCopies
    tied: TiedGradients
    parameter_stages: Mapping[str, tuple[int, ...]]
    buffer_forms: Mapping[str, StoredParameter]
    buffer_stages: Mapping[str, int]
    persistent: frozenset[str]
    aliases: Mapping[str, tuple[str, ...]]

    def close(self) -> None:
        """Ends the process groups of the stage."""
        self.tied.close()


def assemble(
    resolved: ResolvedPlan, initial: InitialState, mesh: RankMesh, options: Options, watchdog: Watchdog
) -> Assembly:
    """Builds this rank's part; a collective of all ranks."""
    plan, graph, here = resolved.plan, resolved.graph, mesh.here
    axis = ProcessGroupAxis(mesh.tensor_group) if mesh.tensor_group is not None else FakeAxis(1)
    programs = [
        BlockProgram(
            block=decision.block,
            module=lower_block(decision.block, decision.sharding).graph,
            recompute=decision.recompute is not Recompute.NONE,
            mutated_buffers=mutated_buffers(decision.block),
        )
        for decision in resolved.blocks
        if decision.stage == here.pipeline
    ]
    specs = _parameter_specs(graph, initial)
    parameter_stages = _parameter_stages(resolved, specs)
    buffer_stages = _buffer_stages(resolved, initial)
    forms = {
        name: store(spec, resolved.parameter_placements.get(name, REPLICATE), mesh.tensor)
        for name, spec in specs.items()
        if here.pipeline in parameter_stages[name]
    }
    buffer_forms = _buffer_forms(resolved, initial, here.pipeline, mesh.tensor)
    parameter_dtype, compute_dtype = options.parameter_dtype(plan), options.compute_dtype(plan)
    parameters = {
        name: (
            form,
            form.wrap(torch.empty(form.local_shape, dtype=parameter_dtype, device="meta"), mesh.tensor_mesh),
        )
        for name, form in forms.items()
    }
    buffers: dict[str, Tensor] = {
        name: torch.empty(form.local_shape, dtype=_buffer_dtype(name, graph, initial), device=mesh.device)
        for name, form in buffer_forms.items()
    }
    sent, received = _crossings(resolved, here.pipeline), _crossings(resolved, here.pipeline - 1)
    is_last = here.pipeline == mesh.pipeline - 1
    made_here = {name for program in programs for name in program.block.outputs}
    copies = ComputeCopies(compute_dtype)
    stage = StageModule(
        programs=programs,
        outputs=(graph.loss,) if is_last else tuple(x.name for x in sent if x.name in made_here),
        axis=axis,
        parameters=parameters,
        buffers=buffers,
        constants={name: value.to(mesh.device) for name, value in graph.constants.items()},
        compute_copies=copies.tensors,
    )
    zero = zero_levels(plan, mesh.pipeline)
    replicas = Replicas(stage, mesh, zero[here.pipeline], compute_dtype)
    stage.to_empty(device=mesh.device)
    _fill(stage, buffers, buffer_forms, initial, mesh)
    if not replicas.is_sharded:
        copies.make(dict(stage.named_originals()))
    tied_stages = {name: stages for name, stages in parameter_stages.items() if len(stages) > 1}
    actions = schedule_actions(plan.schedule or ScheduleName.GPIPE, mesh.pipeline, plan.num_micro_batches)
    executor = Executor(
        stage=stage,
        index=here.pipeline,
        actions=actions[here.pipeline],
        received=received,
        sent=sent,
        links=Links(mesh),
        replicas=replicas,
        watchdog=watchdog,
        loss=graph.loss if is_last else None,
    )
    return Assembly(
        stage=stage,
        executor=executor,
        replicas=replicas,
        copies=copies,
        tied=TiedGradients(mesh, tied_stages, [level > 0 and mesh.data > 1 for level in zero]),
        parameter_stages=parameter_stages,
        buffer_forms=buffer_forms,
        buffer_stages=buffer_stages,
        persistent=initial.persistent,
        aliases={name: spec.aliases for name, spec in specs.items()},
    )


def zero_levels(plan: Plan, num_stages: int) -> tuple[int, ...]:
    """ZeRO level of every stage."""
    if isinstance(plan.zero, tuple):
        return plan.zero
    return (plan.zero or 0,) * num_stages


def _parameter_specs(graph: ModelGraph, initial: InitialState) -> dict[str, ParameterSpec]:
    # A parameter that the loss does not depend on is in no graph, but belongs to the model and its
    # checkpoints.
    return {
        name: graph.parameters.get(name)
        or ParameterSpec(name, TensorSpec(tuple(p.shape), p.dtype), p.requires_grad)
        for name, p in initial.parameters.items()
    }


def _parameter_stages(
    resolved: ResolvedPlan, specs: Mapping[str, ParameterSpec]
) -> dict[str, tuple[int, ...]]:
    stages: dict[str, list[int]] = {name: [] for name in specs}
    for decision in resolved.blocks:
        for name in parameter_reads(decision.block):
            stages[name].append(decision.stage)
    return {name: tuple(sorted(set(found))) or (0,) for name, found in stages.items()}


def _buffer_stages(resolved: ResolvedPlan, initial: InitialState) -> dict[str, int]:
    stages: dict[str, int] = {}
    for decision in resolved.blocks:
        for name in buffer_reads(decision.block):
            stages.setdefault(name, decision.stage)
    return {name: stages.get(name, 0) for name in initial.buffers}


def _buffer_forms(
    resolved: ResolvedPlan, initial: InitialState, stage: int, degree: int
) -> dict[str, StoredParameter]:
    placements: dict[str, Placement] = {}
    used: set[str] = set()
    for decision in resolved.blocks:
        for entry in decision.block.inputs:
            if entry.kind is InputKind.BUFFER:
                used.add(entry.source)
                if decision.stage == stage:
                    placements[entry.source] = decision.sharding.placement_of(entry.placeholder)
    if stage == 0:
        placements.update({name: REPLICATE for name in initial.buffers if name not in used})
    return {
        name: store(
            ParameterSpec(
                name, TensorSpec(tuple(initial.buffers[name].shape), initial.buffers[name].dtype), False
            ),
            placement,
            degree,
        )
        for name, placement in placements.items()
    }


def _buffer_dtype(name: str, graph: ModelGraph, initial: InitialState) -> torch.dtype:
    return graph.buffers[name].dtype if name in graph.buffers else initial.buffers[name].dtype


def _crossings(resolved: ResolvedPlan, boundary: int) -> tuple[Crossing, ...]:
    """Values that travel from stage ``boundary`` to the next, as local tensors, in the order of the graph."""
    made: dict[str, Crossing] = {}
    needed: set[str] = set()
    for decision in resolved.blocks:
        if decision.stage > boundary:
            needed.update(reads(decision.block))
            continue
        for name, placement in zip(decision.block.outputs, decision.sharding.outputs, strict=True):
            if name in resolved.graph.values:
                spec = resolved.graph.values[name]
                shape = local_shape(spec.shape, placement, decision.sharding.degree)
                made[name] = Crossing(name, shape, spec.dtype)
    return tuple(crossing for name, crossing in made.items() if name in needed)


def _fill(
    stage: StageModule,
    buffers: Mapping[str, Tensor],
    buffer_forms: Mapping[str, StoredParameter],
    initial: InitialState,
    mesh: RankMesh,
) -> None:
    parameters = dict(stage.named_originals())
    with torch.no_grad():
        for name, whole in initial.values({*parameters, *buffers}):
            if name in buffers:
                buffers[name].copy_(buffer_forms[name].local_piece(whole, mesh.here.tensor))
                continue
            piece = stage.stored(name).local_piece(whole, mesh.here.tensor)
            fill_parameter(parameters[name], piece, mesh)


def fill_parameter(parameter: nn.Parameter, piece: Tensor, mesh: RankMesh) -> None:
    """Copies this data rank's part of a tensor rank's piece into a parameter."""
    local = local_tensor(parameter.detach())
    dim = data_dim(parameter)
    if dim is None:
        local.copy_(piece)
        return
    parts = piece.chunk(mesh.data, dim)
    if mesh.here.data < len(parts):
        local.copy_(parts[mesh.here.data])


def data_dim(parameter: Tensor) -> int | None:
    """The dim along which data ranks hold different parts of a parameter; None when they hold the same."""
    names = getattr(getattr(parameter, "device_mesh", None), "mesh_dim_names", None) or ()
    if "data" not in names:
        return None
    placement = parameter.placements[names.index("data")]  # type: ignore[attr-defined]
    return int(placement.dim)
