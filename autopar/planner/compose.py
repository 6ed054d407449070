"""From the search's best solution to a complete plan in the words of plan files."""

from __future__ import annotations

from dataclasses import replace

from autopar.hardware.cluster import Cluster
from autopar.plan.decisions import MESH_AXES, Mesh, PatternLine, Plan
from autopar.planner.block_choices import operator_keys, parameter_names
from autopar.planner.model_choices import ModelChoices
from autopar.planner.plan_lines import (
    block_lines,
    closed_lines,
    operator_lines,
    renamed_overrides,
    stage_names,
    tensor_lines,
)
from autopar.sharding.placement import Placement, parse_placement
from autopar.solve.candidate import Candidate, MeshSolution

_EVERYTHING_REPLICATED = (PatternLine("*", "replicate"),)


def compose_plan(settled: Plan, best: MeshSolution, choices: ModelChoices, cluster: Cluster) -> Plan:
    """The complete plan: what the constraints say, and what was chosen for the rest."""
    candidate = best.candidate
    graph = choices.graph_at(candidate.micro_batch)
    names = [block.name for block in graph.blocks]
    words = {n: c.output_word for n, c in zip(names, best.choices, strict=True)}
    sharded = candidate.tensor > 1
    first_blocks = best.layout.first_blocks
    zero = candidate.zero[0] if len(set(candidate.zero)) == 1 else candidate.zero
    model = settled.model
    assert model is not None
    tensor = settled.tensor or _EVERYTHING_REPLICATED
    activations = settled.activations or _EVERYTHING_REPLICATED
    operators: tuple[PatternLine, ...] = settled.operators
    if sharded:
        tensor = tensor_lines(
            settled.tensor, _placements(best, choices), graph, choices.uses, candidate.tensor
        )
        activations = block_lines(settled.activations, words)
        operators = operator_lines(
            settled.operators, _overrides(best, choices), [operator_keys(block) for block in graph.blocks]
        )
    recompute = {n: str(c.recompute) for n, c in zip(names, best.choices, strict=True)}
    return replace(
        settled,
        model=replace(model, fingerprint=graph.fingerprint),
        micro_batch=candidate.micro_batch,
        mesh=Mesh(candidate.pipeline, candidate.data, candidate.tensor, _order(settled, candidate)),
        schedule=candidate.schedule,
        virtual=candidate.virtual,
        stages=stage_names(first_blocks, graph.blocks),
        tensor=_unplaced(tensor),
        activations=_unplaced(activations),
        operators=_unplaced(operators),
        zero=settled.zero if settled.zero is not None else zero,
        recompute=_unplaced(block_lines(closed_lines(settled.recompute, recompute), recompute)),
        shard_group=_shard_group(settled, candidate),
        stage_sizes=(),
        bounds={},
        offload=settled.offload or ",".join(candidate.offload) or "none",
        path="",
        places={},
        sources={},
    )


def _shard_group(settled: Plan, candidate: Candidate) -> int | None:
    """The group where it is pinned, bounded, or not the whole data axis."""
    if "shard_group" in settled.bounds:
        return candidate.shard_group or candidate.data
    return settled.shard_group or candidate.shard_group or None


def _order(settled: Plan, candidate: Candidate) -> tuple[str, str, str] | None:
    """The order of the axes where it is pinned or not the usual one."""
    if settled.mesh.order is not None or candidate.order == MESH_AXES:
        return settled.mesh.order
    slowest, middle, fastest = candidate.order
    return slowest, middle, fastest


def _placements(best: MeshSolution, choices: ModelChoices) -> dict[str, Placement]:
    """Placement of every parameter of the model, in its order."""
    graph = choices.graph_at(best.candidate.micro_batch)
    found: dict[str, Placement] = {}
    for block, choice in zip(graph.blocks, best.choices, strict=True):
        for name, share in zip(parameter_names(block), choice.parameters, strict=True):
            placement = parse_placement(share.placement)
            assert placement is not None and found.get(name, placement) == placement
            found[name] = placement
    return {name: found[name] for name in graph.parameters if name in found}


def _overrides(best: MeshSolution, choices: ModelChoices) -> list[dict[str, str]]:
    graph = choices.graph_at(best.candidate.micro_batch)
    found: list[dict[str, str]] = []
    for block, choice in zip(graph.blocks, best.choices, strict=True):
        if not choice.overrides:
            found.append({})
            continue
        first = choices.first_of_kind(best.candidate.tensor, best.candidate.micro_batch, block.index)
        found.append(renamed_overrides(choice.overrides, operator_keys(first), operator_keys(block)))
    return found


def _unplaced(lines: tuple[PatternLine, ...]) -> tuple[PatternLine, ...]:
    """Lines without the places they were read from, which are those of another file."""
    return tuple(PatternLine(line.pattern, line.word) for line in lines)
