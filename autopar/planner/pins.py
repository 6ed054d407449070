"""A partial plan against the model: which placements, words and recomputations it pins at a tensor degree.

The checks are those of the lowering: a section is completed by a last line for everything else, resolved as
any plan is, and what an own line of the section named is pinned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from autopar.capture.model_graph import ModelGraph
from autopar.lower.placements import resolve_placements
from autopar.lower.resolve import names_operator
from autopar.lower.stages import output_words, recompute_words, resolve_stages
from autopar.plan.decisions import Mesh, PatternLine, Plan, Recompute
from autopar.plan.patterns import first_match, matches
from autopar.sharding.placement import Placement


@dataclass(frozen=True, slots=True)
class Pins:
    """What the constraints fix.

    Attributes:
        placements: by canonical parameter name.
        words: output word by block index.
        recompute: the ways allowed, by block index.
        operators: lines of the ``operators`` section; they name inner operators.
    """

    placements: Mapping[str, Placement]
    words: Mapping[int, str]
    recompute: Mapping[int, tuple[Recompute, ...]]
    operators: tuple[PatternLine, ...]

    def overrides(self, operator_keys: tuple[str, ...]) -> dict[str, str]:
        """Pinned rule text of the operators of a block."""
        found = {}
        for key in operator_keys:
            line = next((x for x in self.operators if names_operator(x.pattern, key)), None)
            if line is not None:
                found[key] = line.word
        return found


def resolve_pins(constraints: Plan, graph: ModelGraph, tensor: int) -> Pins:
    """What ``constraints`` fix for a tensor degree.

    Raises:
        PlanError: a line names what the model does not have, or asks for what the degree cannot do.
    """
    rest = replace(
        constraints,
        mesh=Mesh(constraints.mesh.pipeline, constraints.mesh.data, tensor),
        tensor=_with_rest(constraints.tensor, "replicate"),
        activations=_with_rest(constraints.activations, "replicate"),
        recompute=_with_rest(tuple(map(_first_word, constraints.recompute)), Recompute.NONE),
    )
    placements = resolve_placements(rest, graph)
    words = output_words(rest, graph)
    recompute_words(rest, graph)
    lines = ((b.index, first_match(constraints.recompute, b.name)) for b in graph.blocks)
    return Pins(
        {
            name: placements[name]
            for name, spec in graph.parameters.items()
            if any(matches(x.pattern, n) for x in constraints.tensor for n in (name, *spec.aliases))
        },
        {b.index: words[b.index] for b in graph.blocks if first_match(constraints.activations, b.name)},
        {block: allowed_words(line) for block, line in lines if line is not None},
        constraints.operators,
    )


def allowed_words(line: PatternLine) -> tuple[Recompute, ...]:
    """The ways that a line of ``recompute`` leaves a choice between."""
    return tuple(Recompute(word) for word in line.word.split(" | "))


def _with_rest(lines: tuple[PatternLine, ...], word: str) -> tuple[PatternLine, ...]:
    """The lines with one for every other name, where none of them is for all."""
    return lines if any(line.pattern == "*" for line in lines) else (*lines, PatternLine("*", word))


def _first_word(line: PatternLine) -> PatternLine:
    return replace(line, word=line.word.split(" | ")[0])


def pinned_first_blocks(constraints: Plan, graph: ModelGraph) -> tuple[int, ...] | None:
    """First block of every stage, if the stages are pinned.

    Raises:
        PlanError: the stages do not hold every block once, in order.
    """
    if constraints.stages is None:
        return None
    mesh = Mesh(len(constraints.stages) // (constraints.virtual or 1), None, None)
    return tuple(stage[0] for stage in resolve_stages(replace(constraints, mesh=mesh), graph))
