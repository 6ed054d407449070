"""The ``tensor`` section against the model: a placement for every parameter, or an error at the line."""

from __future__ import annotations

from collections.abc import Mapping

from autopar.capture.model_graph import ModelGraph, ParameterSpec
from autopar.errors import closest_match
from autopar.plan.decisions import PatternLine, Plan
from autopar.plan.patterns import generalised, matches
from autopar.sharding.heads import num_heads
from autopar.sharding.placement import REPLICATE, Placement, Shard
from autopar.sharding.roles import Role, Use, parameter_uses
from autopar.sharding.words import WordError, divisors, placement_of_word, role_for


def resolve_placements(plan: Plan, graph: ModelGraph) -> dict[str, Placement]:
    """Placement of every parameter by canonical name, and of every buffer that is sharded with its module.

    Raises:
        PlanError: a line names no parameter, its word does not fit, a dim or the heads do not divide, or a
            parameter is named by no line.
    """
    degree = plan.mesh.tensor or 1
    uses = parameter_uses(graph)
    _check_patterns(plan, graph)
    found: dict[str, Placement] = {}
    for name, spec in graph.parameters.items():
        line, matched = _line_for(plan.tensor, (name, *spec.aliases))
        if line is None:
            if degree > 1:
                raise plan.error(
                    "tensor",
                    f"no line of 'tensor' names {name} and mesh.tensor is {degree}; add a line for it, e.g. "
                    f'"{name.rpartition(".")[0] or name}": replicate, or let the solver complete the plan',
                )
            found[name] = REPLICATE
            continue
        if name not in uses and line.pattern != matched:
            found[name] = REPLICATE  # no operator reads it, and the line is about others
            continue
        found[name] = _placement(plan, line, matched, spec, uses.get(name, ()), degree)
    if degree > 1:
        found |= _buffers(plan, graph, uses, found, degree)
    return found


def _line_for(lines: tuple[PatternLine, ...], names: tuple[str, ...]) -> tuple[PatternLine | None, str]:
    """The first line that matches any of the names of a parameter, and the name."""
    for line in lines:
        for name in names:
            if matches(line.pattern, name):
                return line, name
    return None, ""


def _placement(
    plan: Plan, line: PatternLine, matched: str, spec: ParameterSpec, uses: tuple[Use, ...], degree: int
) -> Placement:
    role = role_for(matched, uses)
    key = f"tensor.{line.pattern}"
    try:
        placement = placement_of_word(line.word, spec.spec.shape, spec.fused_dims, role, degree)
    except WordError as problem:
        raise plan.error(key, f"'{line.pattern}: {line.word}' cannot hold for {matched}: {problem}") from None
    if line.word == "column" and isinstance(placement, Shard):
        for use in uses:
            heads = num_heads(use, placement.blocks)
            if use.role is role and heads is not None and heads % degree:
                raise plan.error(
                    key,
                    f"'{line.pattern}: {line.word}' shards {matched} by heads, and its {heads} heads do not "
                    f"divide by tensor {degree}; legal degrees are {', '.join(map(str, divisors(heads)))}, "
                    "or write replicate",
                )
    return placement


def _buffers(
    plan: Plan,
    graph: ModelGraph,
    uses: Mapping[str, tuple[Use, ...]],
    parameters: Mapping[str, Placement],
    degree: int,
) -> dict[str, Placement]:
    """Running statistics follow the weight of their module, or the line that names them where it has none."""
    found: dict[str, Placement] = {}
    for name, spec in graph.buffers.items():
        if not any(use.role is Role.CHANNEL_NORM for use in uses.get(name, ())) or len(spec.shape) != 1:
            continue
        weight = f"{name.rpartition('.')[0]}.weight"
        if weight in parameters:
            if isinstance(parameters[weight], Shard):
                found[name] = parameters[weight]
            continue
        line, _ = _line_for(plan.tensor, (name,))
        if line is not None and line.word == "column" and spec.shape[0] % degree == 0:
            found[name] = Shard(0)
    return found


def _check_patterns(plan: Plan, graph: ModelGraph) -> None:
    """Every line must name a parameter (or a buffer): a misspelt name would otherwise go unseen."""
    names = [n for name, spec in graph.parameters.items() for n in (name, *spec.aliases)] + list(
        graph.buffers
    )
    for line in plan.tensor:
        if not any(matches(line.pattern, name) for name in names):
            parts = [name.split(".") for name in names]
            modules = sorted({".".join(p[:i]) for p in parts for i in range(1, len(p) + 1)})
            known = dict.fromkeys(map(generalised, modules)) if "*" in line.pattern else modules
            raise plan.error(
                f"tensor.{line.pattern}",
                f"'tensor' names '{line.pattern}', which is no parameter and no module with parameters"
                + (closest_match(line.pattern, known) or "; delete the line or correct the name"),
            )
