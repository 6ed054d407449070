"""The ``pipeline.stages`` and the block sections of a plan against the model's chain of blocks."""

from __future__ import annotations

from autopar.capture.model_graph import ModelGraph
from autopar.errors import closest_match
from autopar.plan.decisions import PatternLine, Plan, Recompute
from autopar.plan.patterns import first_match, matches
from autopar.plan.ranges import compact
from autopar.sharding.boundary import WORDS as BOUNDARY_WORDS
from autopar.sharding.placement import Shard, parse_placement


def resolve_stages(plan: Plan, graph: ModelGraph) -> tuple[tuple[int, ...], ...]:
    """Block indices of every stage.

    Raises:
        PlanError: a stage names an unknown block, names one again, or out of order; a stage is empty; a
            block is in no stage; the number of stages is not mesh.pipeline x virtual.
    """
    assert plan.stages is not None and plan.mesh.pipeline is not None
    index = {block.name: block.index for block in graph.blocks}
    placed: dict[str, int] = {}
    last = ""
    for number, names in enumerate(plan.stages):
        key = f"pipeline.stages.{number}"
        if not names:
            raise plan.error(key, f"stage {number} holds no block; give it one, or delete it and its device")
        for name in names:
            if name not in index:
                unknown = [each for each in names if each not in index]
                what, known = "are no blocks of the model", f"; its blocks are {_some(list(index))}"
                if len(unknown) == 1:
                    what, known = "is not a block of the model", closest_match(name, index) or known
                raise plan.error(key, f"stage {number} names '{_some(unknown)}', which {what}{known}")
            if name in placed:
                raise plan.error(
                    key,
                    f"stage {number} names '{name}', which stage {placed[name]} already holds; "
                    "every block stands in exactly one place",
                )
            if last and index[name] < index[last]:
                raise plan.error(
                    key,
                    f"stage {number} names '{name}' after '{last}', but the model runs it before; "
                    f"keep the order {_some(list(index))}",
                )
            placed[name] = number
            last = name
    missing = [name for name in index if name not in placed]
    if missing:
        raise plan.error(
            "pipeline.stages",
            f"no stage holds {_some(missing)}; every block of the model stands in exactly one stage",
        )
    wanted = plan.mesh.pipeline * (plan.virtual or 1)
    if len(plan.stages) != wanted:
        raise plan.error(
            "pipeline.stages",
            f"there are {len(plan.stages)} stages for mesh.pipeline {plan.mesh.pipeline} x virtual "
            f"{plan.virtual or 1}; make {wanted} lists",
        )
    return tuple(tuple(index[name] for name in names) for names in plan.stages)


def output_words(plan: Plan, graph: ModelGraph) -> tuple[str, ...]:
    """What flows out of every block: ``replicate``, ``sequence``, ``batch`` or ``shard(d)``.

    Raises:
        PlanError: a line names no block or says no such word; a block is named by no line.
    """
    degree = plan.mesh.tensor or 1
    _check_blocks(plan, "activations", plan.activations, graph)
    words = {line.pattern: _boundary_word(plan, line) for line in plan.activations}
    found = []
    for block in graph.blocks:
        line = first_match(plan.activations, block.name)
        if line is None and degree > 1:
            raise plan.error(
                "activations",
                f"no line of 'activations' names block {block.name} and mesh.tensor is {degree}; add "
                '"*": replicate, or let the solver complete the plan',
            )
        found.append(words[line.pattern] if line is not None and degree > 1 else "replicate")
    return tuple(found)


def recompute_words(plan: Plan, graph: ModelGraph) -> tuple[Recompute, ...]:
    """What every block computes again in its backward pass.

    Raises:
        PlanError: a line names no block or says no such word; a block is named by no line.
    """
    _check_blocks(plan, "recompute", plan.recompute, graph)
    found = []
    for block in graph.blocks:
        line = first_match(plan.recompute, block.name)
        if line is None:
            raise plan.error(
                "recompute",
                f"no line of 'recompute' names block {block.name}; add \"*\": none, or let the solver "
                "complete the plan",
            )
        known = [word.value for word in Recompute]
        if line.word not in known:
            raise plan.error(
                f"recompute.{line.pattern}",
                f"'{line.word}' is no way to recompute{closest_match(line.word, known)}; "
                f"write one of {', '.join(known)}",
            )
        found.append(Recompute(line.word))
    return tuple(found)


def _boundary_word(plan: Plan, line: PatternLine) -> str:
    if line.word in BOUNDARY_WORDS[:3]:
        return line.word
    placement = parse_placement(line.word)
    if isinstance(placement, Shard) and placement.blocks == 1:
        return line.word
    raise plan.error(
        f"activations.{line.pattern}",
        f"'{line.word}' cannot flow between blocks{closest_match(line.word, BOUNDARY_WORDS)}; "
        f"write one of {', '.join(BOUNDARY_WORDS)}",
    )


def _check_blocks(plan: Plan, section: str, lines: tuple[PatternLine, ...], graph: ModelGraph) -> None:
    names = [block.name for block in graph.blocks]
    for line in lines:
        if not any(matches(line.pattern, name) for name in names):
            raise plan.error(
                f"{section}.{line.pattern}",
                f"'{section}' names '{line.pattern}', which is no block of the model"
                + (closest_match(line.pattern, names) or f"; its blocks are {_some(names)}"),
            )


def _some(names: list[str]) -> str:
    """All names, numbered ones as ranges, if they are few; else the first and the last ones."""
    entries = list(compact(names))
    return ", ".join(entries if len(entries) <= 8 else [*entries[:4], "...", *entries[-3:]])
