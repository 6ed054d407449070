"""Random complete plans for a captured model: all that a plan file can say, drawn from what is legal."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

from autopar.capture.model_graph import ModelGraph
from autopar.errors import PlanError
from autopar.lower.resolve import names_operator, resolve
from autopar.plan.decisions import Mesh, ModelReference, PatternLine, Plan, Precision, Recompute, ScheduleName
from autopar.plan.patterns import matches
from autopar.plan.read import parse_plan
from autopar.plan.write import write_plan
from tests.lower.test_random_plans import random_plan

SCHEDULES = (
    (ScheduleName.GPIPE, 1),
    (ScheduleName.ONE_F_ONE_B, 1),
    (ScheduleName.ONE_F_ONE_B, 1),
    (ScheduleName.INTERLEAVED, 2),
    (ScheduleName.INTERLEAVED, 3),
    (ScheduleName.ZERO_BUBBLE, 1),
    (ScheduleName.ZBV, 2),
)
AXES = ("pipeline", "data", "tensor")
ORDERS = (None, None, *((a, b, c) for a in AXES for b in AXES for c in AXES if len({a, b, c}) == 3))
OFFLOADS = ("none", "none", "none", "activations", "optimizer", "parameters", "optimizer,activations")
_ATTEMPTS = 60


def draw_plan(graph: ModelGraph, source: str, seed: int, num_ranks: int) -> Plan:
    """A plan that ``resolve`` accepts, written as YAML and read back."""
    chance = random.Random(f"plan {seed}")
    refusal: PlanError | None = None
    for _ in range(_ATTEMPTS):
        plan = _draw(graph, source, chance, num_ranks)
        if plan is None:
            continue
        try:
            text = write_plan(plan)
            found = parse_plan(text)
            resolve(found, graph)
        except PlanError as problem:
            refusal = problem
            continue
        assert found == plan, f"what was read differs from what was written:\n{text}"
        return found
    raise AssertionError(f"no plan was legal in {_ATTEMPTS} attempts; the last: {refusal}")


def adapted(plan: Plan, graph: ModelGraph) -> Plan:
    """A plan for a larger model, without what names parts of it that ``graph`` no longer has."""
    if plan.model is None or plan.model.fingerprint == graph.fingerprint:
        return plan
    names = [block.name for block in graph.blocks]
    parameters = [n for name, spec in graph.parameters.items() for n in (name, *spec.aliases)]
    nodes = [node for block in graph.blocks for node in block.graph.nodes]
    keys = [node.meta.get("operator_key", "") for node in nodes]
    num_stages = len(plan.stages or ())
    stages = plan.stages
    if [name for stage in stages or () for name in stage] != names:
        stages = even_stages(names, num_stages)
    every = (PatternLine("*", "replicate"),)
    return replace(
        plan,
        model=replace(plan.model, fingerprint=graph.fingerprint),
        stages=stages,
        tensor=(*_matching(plan.tensor, [*parameters, *graph.buffers]), *every),
        activations=(*_matching(plan.activations, names), *every),
        recompute=(*_matching(plan.recompute, names), PatternLine("*", "none")),
        operators=tuple(x for x in plan.operators if any(names_operator(x.pattern, key) for key in keys)),
    )


def even_stages(names: list[str], num_stages: int) -> tuple[tuple[str, ...], ...]:
    """Blocks cut into stages of about as many each."""
    cuts = [len(names) * k // num_stages for k in range(num_stages + 1)]
    return tuple(tuple(names[a:b]) for a, b in pairwise(cuts))


def _matching(lines: tuple[PatternLine, ...], names: list[str]) -> tuple[PatternLine, ...]:
    return tuple(x for x in lines if x.pattern != "*" and any(matches(x.pattern, name) for name in names))


def _draw(graph: ModelGraph, source: str, chance: random.Random, num_ranks: int) -> Plan | None:
    names = [block.name for block in graph.blocks]
    schedule, virtual = chance.choice(SCHEDULES)
    fitting = [mesh for mesh in _meshes(num_ranks) if mesh[0] * virtual <= len(names)]
    if not fitting:
        return None
    pipeline, data, tensor = chance.choice(fitting)
    num_stages = pipeline * virtual
    sections = random_plan(graph, chance, tensor) if tensor > 1 else None
    num_micro_batches = chance.choice((1, 2, 2, 3, 4, 5))
    mixed = data > 1 and chance.random() < 0.35
    offload = chance.choice(OFFLOADS)
    level = 3 if "parameters" in offload else chance.choice((0, 1, 2, 3))
    cuts = sorted(chance.sample(range(1, len(names)), num_stages - 1))
    divisors = [d for d in range(1, data + 1) if data % d == 0]
    return Plan(
        model=ModelReference(source, {}, graph.fingerprint),
        global_batch=graph.micro_batch * num_micro_batches * data,
        micro_batch=graph.micro_batch,
        mesh=Mesh(pipeline, data, tensor, chance.choice(ORDERS)),
        precision=Precision.FP32,
        optimizer="adamw",
        schedule=schedule,
        virtual=virtual,
        stages=tuple(tuple(names[a:b]) for a, b in pairwise([0, *cuts, len(names)])),
        tensor=sections.tensor if sections else _lines([("*", "replicate")]),
        activations=_activations(names, chance) if sections else _lines([("*", "replicate")]),
        operators=sections.operators if sections and chance.random() < 0.5 else (),
        zero=tuple(chance.choice((0, 1, 2, 3)) for _ in range(num_stages)) if mixed else level,
        shard_group=chance.choice((None, chance.choice(divisors))),
        recompute=_recompute(names, chance),
        offload=offload,
    )


def _meshes(num_ranks: int) -> Iterable[tuple[int, int, int]]:
    for pipeline in range(1, num_ranks + 1):
        for data in range(1, num_ranks // pipeline + 1):
            if num_ranks % (pipeline * data) == 0:
                yield pipeline, data, num_ranks // (pipeline * data)


def _activations(names: list[str], chance: random.Random) -> tuple[PatternLine, ...]:
    words = ("replicate", "sequence", "batch", "shard(2)")
    if chance.random() < 0.5:
        return _lines([("*", chance.choice(words[:3]))])
    return _lines([(name, chance.choice(words)) for name in names])


def _recompute(names: list[str], chance: random.Random) -> tuple[PatternLine, ...]:
    words = [word.value for word in Recompute]
    if chance.random() < 0.5:
        return _lines([("*", chance.choice(words))])
    return _lines([(name, chance.choice(words)) for name in names])


def _lines(entries: Iterable[tuple[str, str]]) -> tuple[PatternLine, ...]:
    return tuple(PatternLine(pattern, word) for pattern, word in entries)
