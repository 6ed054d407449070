"""Plan and model together: every decision in terms of the model's blocks, or an error at its line."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace

import torch

from autopar.capture.model_graph import Block, InputKind, ModelGraph
from autopar.errors import UsageError, closest_match
from autopar.lower.placements import resolve_placements
from autopar.lower.stages import output_words, recompute_words, resolve_stages
from autopar.lower.supported import check_supported
from autopar.plan.decisions import Plan, Recompute, ScheduleName
from autopar.plan.patterns import matches
from autopar.sharding.boundary import boundary_placements
from autopar.sharding.placement import Placement
from autopar.sharding.propagation import BlockSharding, input_placements, propagate


@dataclass(frozen=True, slots=True)
class BlockDecision:
    """How one block runs.

    Attributes:
        block: the block.
        stage: index of its pipeline stage.
        sharding: rule of every operator, placement of every input and output.
        recompute: what its backward pass computes again.
        input_word: output word of the block before it; ``replicate`` for the first.
        output_word: what flows out: ``replicate``, ``sequence`` or ``batch``.
        overrides: rule text by operator key, where the plan decides otherwise than the propagation.
    """

    block: Block
    stage: int
    sharding: BlockSharding
    recompute: Recompute
    input_word: str
    output_word: str
    overrides: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ResolvedPlan:
    """A complete plan bound to its model.

    Attributes:
        plan: the plan.
        graph: the model at the plan's micro-batch.
        blocks: one decision a block, in the order of the chain.
        num_stages: pipeline degree x virtual stages.
        stages: block indices of every stage.
        parameter_placements: placement on the tensor axis by canonical parameter name, and by buffer name
            for the buffers that are sharded with their module.
    """

    plan: Plan
    graph: ModelGraph
    blocks: tuple[BlockDecision, ...]
    num_stages: int
    stages: tuple[tuple[int, ...], ...]
    parameter_placements: Mapping[str, Placement]


def missing_decisions(plan: Plan) -> tuple[str, ...]:
    """Keys that a complete plan has and this one leaves to the solver, in the order of the file."""
    is_sharded = plan.mesh.tensor != 1
    # Most schedules run one stage on each rank, so that a plan need not say it.
    is_virtual = plan.schedule in (ScheduleName.INTERLEAVED, ScheduleName.ZBV)
    given = {
        "batch.global": plan.global_batch is not None,
        "batch.micro": plan.micro_batch is not None,
        "mesh.pipeline": plan.mesh.pipeline is not None,
        "mesh.data": plan.mesh.data is not None,
        "mesh.tensor": plan.mesh.tensor is not None,
        "precision": plan.precision is not None,
        "pipeline.schedule": plan.schedule is not None,
        "pipeline.virtual": plan.virtual is not None or not is_virtual,
        "pipeline.stages": plan.stages is not None,
        "tensor": bool(plan.tensor) or not is_sharded,
        "activations": bool(plan.activations) or not is_sharded,
        "zero": plan.zero is not None,
        "recompute": bool(plan.recompute) and not any("|" in line.word for line in plan.recompute),
    }
    return tuple(key for key, present in given.items() if not present)


def check_complete(plan: Plan) -> None:
    """Refuses a plan that leaves decisions to the solver.

    Raises:
        PlanError: it does; names them and the command that completes it.
    """
    missing = missing_decisions(plan)
    if missing:
        model = plan.model.source if plan.model else "MODEL"
        raise plan.error(
            missing[0],
            f"the plan leaves {', '.join(missing)} to the solver; complete it with "
            f"`autopar plan {model} --with {plan.path or 'PLAN'} -o FILE`",
        )


def resolve(plan: Plan, graph: ModelGraph) -> ResolvedPlan:
    """Binds a complete plan to the model captured at its micro-batch.

    Raises:
        PlanError: the plan is incomplete, belongs to another model, names what the model does not have, or
            asks for what does not divide or cannot be run; at ``file:line`` where the plan was read from a
            file.
    """
    check_complete(plan)
    assert graph.micro_batch == plan.micro_batch, "the model was captured at another micro-batch"
    degree = plan.mesh.tensor
    assert degree is not None
    _check_fingerprint(plan, graph)
    _check_mesh_and_batch(plan)
    stages = resolve_stages(plan, graph)
    check_supported(plan, graph)
    words = output_words(plan, graph)
    recompute = recompute_words(plan, graph)
    parameters = resolve_placements(plan, graph)
    overrides = _overrides(plan, graph)
    boundary = boundary_placements(graph, dict(enumerate(words)), degree)
    stage_of = {index: number for number, indices in enumerate(stages) for index in indices}
    propagations = _Propagations(degree, parameters, boundary)
    decisions = []
    for block in graph.blocks:
        own = overrides[block.index]
        outputs = tuple(boundary[name] for name in block.outputs)
        try:
            sharding = propagations.of(block, outputs, own)
        except UsageError as problem:
            raise plan.error(f"operators.{_line_of(plan, own, str(problem))}", str(problem)) from None
        decisions.append(
            BlockDecision(
                block=block,
                stage=stage_of[block.index],
                sharding=sharding,
                recompute=recompute[block.index],
                input_word=words[block.index - 1] if block.index else "replicate",
                output_word=words[block.index],
                overrides=own,
            )
        )
    return ResolvedPlan(plan, graph, tuple(decisions), len(stages), stages, parameters)


@dataclass(slots=True)
class _Propagations:
    """One propagation for all blocks of a class that are laid out alike."""

    degree: int
    parameters: Mapping[str, Placement]
    boundary: Mapping[str, Placement]
    known: dict[Hashable, tuple[tuple[str, ...], BlockSharding]] = field(default_factory=dict)

    def of(self, block: Block, outputs: tuple[Placement, ...], overrides: Mapping[str, str]) -> BlockSharding:
        arriving = input_placements(block, self.degree, self.parameters, self.boundary)
        texts = tuple(overrides.get(call.operator_key) for call in block.calls)
        names = tuple(call.name for call in block.calls)
        key = (block.class_key, tuple(arriving.values()), outputs, texts)
        if key not in self.known:
            made = propagate(block, self.degree, self.parameters, self.boundary, outputs, overrides)
            self.known[key] = names, made
            return made
        # Blocks of a class have the same operators in the same order, under names of their own.
        known_names, found = self.known[key]
        own = {i.placeholder for i in block.inputs if i.kind is InputKind.PARAMETER}
        return replace(
            found,
            parameters={name: p for name, p in arriving.items() if name in own},
            inputs={name: p for name, p in arriving.items() if name not in own},
            rules={name: found.rules[known] for name, known in zip(names, known_names, strict=True)},
        )


def _check_fingerprint(plan: Plan, graph: ModelGraph) -> None:
    wanted = plan.model.fingerprint if plan.model is not None else None
    if wanted is not None and wanted != graph.fingerprint:
        raise plan.error(
            "model.fingerprint",
            f"the plan is for the model {wanted}, this one is {graph.fingerprint}; use the model and the"
            f" arguments of the plan (and the version of torch, here {torch.__version__}: another may trace"
            " other operators), or plan again",
        )


def _check_mesh_and_batch(plan: Plan) -> None:
    pipeline, data, tensor = plan.mesh.pipeline, plan.mesh.data, plan.mesh.tensor
    assert pipeline and data and tensor and plan.global_batch and plan.micro_batch
    if plan.cluster is not None and pipeline * data * tensor != plan.cluster.num_devices:
        raise plan.error(
            "mesh",
            f"mesh {pipeline} x {data} x {tensor} is {pipeline * data * tensor} devices, but the cluster has "
            f"{plan.cluster.num_devices}; change a degree or the cluster",
        )
    if plan.global_batch % (plan.micro_batch * data):
        raise plan.error(
            "batch",
            f"micro {plan.micro_batch} x data {data} does not divide the global batch {plan.global_batch}; "
            f"use a multiple of {plan.micro_batch * data}",
        )


def _overrides(plan: Plan, graph: ModelGraph) -> list[dict[str, str]]:
    """Rule text by operator key, for every block.

    Raises:
        PlanError: a line names no operator.
    """
    found: list[dict[str, str]] = [{} for _ in graph.blocks]
    keys = [[call.operator_key for call in block.calls] for block in graph.blocks]
    for line in plan.operators:
        named = False
        for block in graph.blocks:
            for key in keys[block.index]:
                if names_operator(line.pattern, key):
                    named = True
                    found[block.index].setdefault(key, line.word)
        if not named:
            known = [key for block_keys in keys for key in block_keys]
            raise plan.error(
                f"operators.{line.pattern}",
                f"'operators' names '{line.pattern}', which is no operator of the model"
                + (
                    closest_match(line.pattern, known)
                    or "; write module:operator#ordinal, as `explain` prints it"
                ),
            )
    return found


def names_operator(pattern: str, key: str) -> bool:
    """Whether a line of ``operators`` names an operator: module components may be ``*`` or ranges."""
    module, colon, operator = pattern.rpartition(":")
    own_module, _, own_operator = key.rpartition(":")
    if not colon or operator != own_operator or module.count(".") != own_module.count("."):
        return False
    return module == own_module or matches(module, own_module)


def _line_of(plan: Plan, overrides: Mapping[str, str], message: str) -> str:
    """Pattern of the line whose operator a failed propagation names."""
    key = next(key for key in overrides if f"'{key}'" in message)
    return next(line.pattern for line in plan.operators if names_operator(line.pattern, key))
