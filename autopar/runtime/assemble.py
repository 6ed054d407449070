"""Building one rank's part of a resolved plan: programs, this rank's shards, data parallelism, links.

The order is the one in which the parts compose: lower on the tensor axis, blocks into stages, recompute,
data parallelism, schedule. Parameters that FSDP shards are made on the meta device and sharded there, so that
memory is only ever allocated for this rank's pieces; the starting weights then stream through, one whole
parameter at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from autopar.lower.axis import FakeAxis, ProcessGroupAxis, TensorAxis
from autopar.lower.compiled import Compiler
from autopar.lower.late_gradients import late_parameters
from autopar.lower.resolve import ResolvedPlan
from autopar.plan.decisions import Plan, ScheduleName
from autopar.runtime.carried_buffers import buffers_of_samples
from autopar.runtime.crossings import Crossing, PlacedBlock, boundary_crossings
from autopar.runtime.executor import Executor
from autopar.runtime.export import StateLayout
from autopar.runtime.fill import fill
from autopar.runtime.gradients import TiedGradients, add_up_late_gradients
from autopar.runtime.held_stage import HeldStage
from autopar.runtime.holdings import Holdings, find_holdings
from autopar.runtime.initialise import InitialState
from autopar.runtime.links import Links
from autopar.runtime.masters import HostMasters
from autopar.runtime.mesh import RankMesh
from autopar.runtime.options import Options
from autopar.runtime.output_passes import OutputPasses
from autopar.runtime.rank_stages import RankStages
from autopar.runtime.replicas import ComputeCopies, Replicas
from autopar.runtime.routes import block_program, lowered_program, parameter_placeholders
from autopar.runtime.shared_buffers import SharedBuffers
from autopar.runtime.stage import StageModule
from autopar.runtime.storage import StoredParameter
from autopar.runtime.watchdog import Watchdog
from autopar.schedule.actions import SPLIT_BACKWARD, rank_stages, schedule_actions, stage_rank


@dataclass(frozen=True)
class Assembly:
    """Everything that one rank runs.

    Attributes:
        stages: this rank's stages as one module.
        executor: plays their actions.
        replicas: data parallelism of each stage.
        copies: of the parameters in the compute dtype, where that differs and they are not sharded.
        masters: parameters in host memory in the place of those that compute, if the optimiser is offloaded.
        tied: parameters that other ranks of the pipeline axis hold too.
        late: names of the parameters of whose gradients each tensor rank has a summand.
        sharded: names of this rank's parameters of which the data ranks hold different pieces.
        parameter_ranks: canonical name of every parameter of the model -> the first rank on the pipeline axis
            that holds it.
        buffer_forms: stored forms of this rank's buffers.
        buffer_ranks: name of every buffer of the model -> the rank of the first stage that holds it.
        persistent: names of the buffers that belong into a state dict.
        layout: of the plain model's state dict.
        passes: forward passes for the module's output.
        shared_buffers: those that the data ranks would carry on apart.
    """

    stages: RankStages
    executor: Executor
    replicas: tuple[Replicas, ...]
    copies: ComputeCopies
    masters: HostMasters | None
    tied: TiedGradients
    late: frozenset[str]
    sharded: frozenset[str]
    parameter_ranks: Mapping[str, int]
    buffer_forms: Mapping[str, StoredParameter]
    buffer_ranks: Mapping[str, int]
    persistent: frozenset[str]
    layout: StateLayout
    passes: OutputPasses
    shared_buffers: SharedBuffers

    def synchronise_gradients(self, mesh: RankMesh) -> None:
        """Completes the gradients that the backward passes have left; a collective of all ranks."""
        for replicas in self.replicas:
            replicas.average_gradients()
        self.stages.collect_gradients()
        parameters = dict(self.stages.named_originals())
        if mesh.tensor_group is not None:
            add_up_late_gradients([parameters[name] for name in sorted(self.late)], mesh)
        self.tied.reduce(parameters)

    def close(self) -> None:
        """Ends the process groups of the stages."""
        self.tied.close()


@dataclass
class _Builder:
    """What the stages of one rank have in common while they are built."""

    resolved: ResolvedPlan
    initial: InitialState
    mesh: RankMesh
    options: Options
    holdings: Holdings
    crossings: tuple[tuple[Crossing, ...], ...]
    axis: TensorAxis
    copies: ComputeCopies
    compiler: Compiler | None
    lowered: dict[int, fx.GraphModule] = field(default_factory=dict)
    late: frozenset[str] = frozenset()
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    buffer_forms: dict[str, StoredParameter] = field(default_factory=dict)

    @property
    def is_split(self) -> bool:
        return self.resolved.plan.schedule in SPLIT_BACKWARD

    def zero(self, index: int) -> int:
        return zero_levels(self.resolved.plan, self.resolved.num_stages)[index]

    def lower(self, indices: Collection[int]) -> None:
        """Lowers the blocks of this rank's stages; finds gradients that all of them leave as summands."""
        late: set[str] = set()
        at_once: set[str] = set()
        for decision in self.resolved.blocks:
            if decision.stage in indices:
                block = decision.block
                program = lowered_program(block, decision.sharding, self.mesh.device)
                self.lowered[block.index] = program
                names = parameter_placeholders(block)
                found = {names[placeholder] for placeholder in late_parameters(program, names)}
                late |= found
                at_once |= set(names.values()) - found
        self.late = frozenset(late - at_once)

    def build(self, index: int) -> HeldStage:
        resolved, mesh = self.resolved, self.mesh
        is_last = index == resolved.num_stages - 1
        programs = [
            block_program(x.block, self.lowered[x.block.index], x.recompute, self.late, self.is_split)
            for x in resolved.blocks
            if x.stage == index
        ]
        made_here = {name for program in programs for name in program.block.outputs}
        sent = () if is_last else self.crossings[index]
        module = StageModule(
            programs=programs,
            outputs=(resolved.graph.loss,) if is_last else tuple(x.name for x in sent if x.name in made_here),
            axis=self.axis,
            parameters=self.parameters_of(index),
            buffers=self.buffers_of(index),
            constants={name: value.to(mesh.device) for name, value in resolved.graph.constants.items()},
            compute_copies=self.copies.tensors,
            compiler=self.compiler,
        )
        compute_dtype = self.options.compute_dtype(resolved.plan)
        offloads_parameters = "parameters" in resolved.plan.offloaded
        replicas = Replicas(module, mesh, self.zero(index), compute_dtype, is_last, offloads_parameters)
        if replicas.is_sharded:
            module.to_empty(device=torch.device("cpu") if offloads_parameters else mesh.device)
        if "activations" in resolved.plan.offloaded:
            module.offload_activations(mesh.device)
        return HeldStage(
            index=index,
            module=module,
            replicas=replicas,
            received=self.crossings[index - 1] if index else (),
            sent=sent,
            loss=resolved.graph.loss if is_last else None,
            route=module.route,
        )

    def parameters_of(self, index: int) -> dict[str, tuple[StoredParameter, nn.Parameter]]:
        dtype = self.options.parameter_dtype(self.resolved.plan)
        will_be_sharded = self.mesh.divides(self.zero(index))
        found = {}
        for name, form in self.holdings.parameters_of(index, self.mesh.tensor).items():
            if will_be_sharded:
                empty = torch.empty(form.local_shape, dtype=dtype, device="meta")
                found[name] = form, form.wrap(empty, self.mesh.tensor_mesh)
                continue
            if name not in self.parameters:
                empty = torch.empty(form.local_shape, dtype=dtype, device=self.mesh.device)
                self.parameters[name] = form.wrap(empty, self.mesh.tensor_mesh)
            found[name] = form, self.parameters[name]
        return found

    def buffers_of(self, index: int) -> dict[str, Tensor]:
        forms = self.holdings.buffers_of(index, self.mesh.tensor, self.initial)
        for name, form in forms.items():
            if name not in self.buffers:
                dtype = self.holdings.buffer_dtypes[name]
                self.buffers[name] = torch.empty(form.local_shape, dtype=dtype, device=self.mesh.device)
                self.buffer_forms[name] = form
        return {name: self.buffers[name] for name in forms}


def assemble(
    resolved: ResolvedPlan, initial: InitialState, mesh: RankMesh, options: Options, watchdog: Watchdog
) -> Assembly:
    """Builds this rank's part; a collective of all ranks."""
    plan, here = resolved.plan, mesh.here.pipeline
    schedule, virtual = plan.schedule or ScheduleName.GPIPE, plan.virtual or 1

    def rank_of(stage: int) -> int:
        return stage_rank(schedule, stage, mesh.pipeline, virtual)

    builder = _Builder(
        resolved=resolved,
        initial=initial,
        mesh=mesh,
        options=options,
        holdings=find_holdings(resolved, initial),
        crossings=boundary_crossings(
            [PlacedBlock(x.block, x.sharding, x.stage) for x in resolved.blocks],
            resolved.graph.values,
            resolved.num_stages,
        ),
        axis=ProcessGroupAxis(mesh.tensor_group) if mesh.tensor_group is not None else FakeAxis(1),
        copies=ComputeCopies(options.compute_dtype(plan)),
        compiler=Compiler(channels_last=mesh.device.type == "cpu") if plan.compile else None,
    )
    indices = rank_stages(schedule, here, mesh.pipeline, virtual)
    builder.lower(indices)
    held = [builder.build(index) for index in indices]
    stages = RankStages({stage.index: stage.module for stage in held})
    parameters = dict(stages.named_originals())
    fill(parameters, stages.forms(), builder.buffers, builder.buffer_forms, initial, mesh)
    whole = {
        name for stage in held if not stage.replicas.is_sharded for name, _ in stage.module.named_originals()
    }
    builder.copies.make({name: parameter for name, parameter in parameters.items() if name in whole})
    holders = Counter(name for stage in held for name, _ in stage.module.named_originals())
    for stage in held:
        stage.replicas.overlap(builder.copies, {name for name, count in holders.items() if count > 1})
    holdings = builder.holdings
    owners = {
        name: tuple(sorted({rank_of(stage) for stage in found}))
        for name, found in holdings.parameter_stages.items()
    }
    executor = Executor(
        stages=held,
        schedule_of=lambda num: schedule_actions(schedule, resolved.num_stages, num, virtual),
        num_stages=resolved.num_stages,
        rank_of=rank_of,
        rank=here,
        links=Links(mesh, builder.crossings, rank_of),
        watchdog=watchdog,
    )
    return Assembly(
        stages=stages,
        executor=executor,
        replicas=tuple(stage.replicas for stage in held),
        copies=builder.copies,
        masters=_masters(plan, parameters),
        tied=_tied_gradients(resolved, holdings, owners, mesh),
        late=builder.late,
        sharded=frozenset(parameters) - whole,
        parameter_ranks={name: found[0] for name, found in owners.items()},
        buffer_forms=builder.buffer_forms,
        buffer_ranks={name: rank_of(found[0]) for name, found in holdings.buffer_stages.items()},
        persistent=initial.persistent,
        layout=holdings.layout(initial, options.parameter_dtype(plan)),
        passes=OutputPasses(resolved, mesh, executor, builder.late),
        shared_buffers=_shared_buffers(builder),
    )


def _shared_buffers(builder: _Builder) -> SharedBuffers:
    names = buffers_of_samples(x.block for x in builder.resolved.blocks)
    return SharedBuffers({k: v for k, v in builder.buffers.items() if k in names}, builder.mesh)


def _masters(plan: Plan, parameters: Mapping[str, nn.Parameter]) -> HostMasters | None:
    # Offloaded parameters are updated on the host anyway.
    if "optimizer" not in plan.offloaded or "parameters" in plan.offloaded:
        return None
    return HostMasters(parameters.items())


def zero_levels(plan: Plan, num_stages: int) -> tuple[int, ...]:
    """ZeRO level of every stage."""
    if isinstance(plan.zero, tuple):
        return plan.zero
    return (plan.zero or 0,) * num_stages


def _tied_gradients(
    resolved: ResolvedPlan, holdings: Holdings, owners: Mapping[str, tuple[int, ...]], mesh: RankMesh
) -> TiedGradients:
    is_sharded = [mesh.divides(level) for level in zero_levels(resolved.plan, resolved.num_stages)]
    tied = {name: ranks for name, ranks in owners.items() if len(ranks) > 1}
    mixed = [
        name for name in tied if len({is_sharded[stage] for stage in holdings.parameter_stages[name]}) > 1
    ]
    return TiedGradients(mesh, tied, mixed)
