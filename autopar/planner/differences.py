"""The decisions in which two complete plans of one model differ, each as a partial plan of either side.

A decision is what a person would change at once: the mesh with the number of stages that it asks for, the
schedule with its stages a rank, one section, or the lines of a section that give some modules another word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from autopar.capture.model_graph import ModelGraph
from autopar.lower.placements import resolve_placements
from autopar.lower.stages import output_words, recompute_words
from autopar.plan.decisions import MESH_AXES, Mesh, PatternLine, Plan
from autopar.plan.patterns import generalised, matches
from autopar.plan.ranges import compact
from autopar.sharding.roles import parameter_uses
from autopar.sharding.words import role_for, word_of

UNSAID = "as it follows"
"""What a plan says of a module that none of its lines names."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One decision in which two plans differ.

    Attributes:
        key: as ``--set`` writes it, e.g. ``zero`` or ``recompute.blocks.0-5``.
        first, second: what either plan says, in words.
        of_first, of_second: partial plans that decide this, and nothing else, as either plan does.
    """

    key: str
    first: str
    second: str
    of_first: Plan
    of_second: Plan


def differences(first: Plan, second: Plan, graph: ModelGraph) -> tuple[Difference, ...]:
    """Where two complete plans differ, in the order of the file.

    Stages are no difference where there is another number of them, nor are placements on a tensor axis of
    another degree: these follow.

    Args:
        graph: the model at any micro-batch.
    """
    found = [*_scalars(first, second)]
    if first.mesh.tensor == second.mesh.tensor != 1:
        for section, words_of in _ON_THE_TENSOR_AXIS.items():
            found += _lines(section, words_of(first, graph), words_of(second, graph))
    found += _lines("recompute", _recompute_words(first, graph), _recompute_words(second, graph))
    return tuple(found)


def num_stages(plan: Plan) -> int:
    """Stages in all."""
    return (plan.mesh.pipeline or 1) * (plan.virtual or 1)


def _scalars(first: Plan, second: Plan) -> Iterable[Difference]:
    for key, pick, text in _DECISIONS:
        if key == "pipeline.stages" and num_stages(first) != num_stages(second):
            continue  # follows from the mesh or the schedule
        one, other = pick(first), pick(second)
        if one != other:
            yield Difference(key, text(first), text(second), one, other)


def _mesh(plan: Plan) -> Plan:
    mesh = plan.mesh
    order = mesh.order if mesh.order != MESH_AXES else None
    return Plan(mesh=Mesh(mesh.pipeline, mesh.data, mesh.tensor, order))


def _mesh_text(plan: Plan) -> str:
    mesh = plan.mesh
    text = f"{mesh.pipeline} x {mesh.data} x {mesh.tensor}"
    return text if mesh.order in (None, MESH_AXES) else f"{text}, {' > '.join(mesh.order or ())}"


def _schedule(plan: Plan) -> Plan:
    if plan.mesh.pipeline == 1 and (plan.virtual or 1) == 1:
        return Plan()  # one stage has one schedule
    return Plan(schedule=plan.schedule, virtual=plan.virtual or 1)


def _schedule_text(plan: Plan) -> str:
    return f"{plan.schedule} x {plan.virtual}" if (plan.virtual or 1) > 1 else str(plan.schedule)


def _stages(plan: Plan) -> Plan:
    stages = plan.stages or ()
    return Plan(stages=stages if len(stages) > 1 else None)


def _stages_text(plan: Plan) -> str:
    return "/".join(str(len(stage)) for stage in plan.stages or ()) + " blocks"


def _levels(plan: Plan) -> int | tuple[int, ...] | None:
    return plan.zero[0] if isinstance(plan.zero, tuple) and len(set(plan.zero)) == 1 else plan.zero


def _zero_text(plan: Plan) -> str:
    levels = _levels(plan)
    return "/".join(map(str, levels)) if isinstance(levels, tuple) else str(levels)


def _group(plan: Plan) -> Plan:
    is_sharded = plan.zero not in (0, None) and plan.shard_group not in (None, plan.mesh.data)
    return Plan(shard_group=plan.shard_group if is_sharded else None)


_DECISIONS: tuple[tuple[str, Callable[[Plan], Plan], Callable[[Plan], str]], ...] = (
    ("batch.global", lambda p: Plan(global_batch=p.global_batch), lambda p: str(p.global_batch)),
    ("batch.micro", lambda p: Plan(micro_batch=p.micro_batch), lambda p: str(p.micro_batch)),
    ("mesh", _mesh, _mesh_text),
    ("precision", lambda p: Plan(precision=p.precision), lambda p: str(p.precision)),
    ("optimizer", lambda p: Plan(optimizer=p.optimizer), lambda p: str(p.optimizer)),
    ("pipeline.schedule", _schedule, _schedule_text),
    ("pipeline.stages", _stages, _stages_text),
    ("zero", lambda p: Plan(zero=_levels(p)), _zero_text),
    ("shard_group", _group, lambda p: f"{p.shard_group or p.mesh.data} of {p.mesh.data}"),
    ("offload", lambda p: Plan(offload=p.offload or "none"), lambda p: p.offload or "none"),
    ("compile", lambda p: Plan(compile=bool(p.compile)), lambda p: str(bool(p.compile)).lower()),
)


def _placed_words(plan: Plan, graph: ModelGraph) -> dict[str, str]:
    """What every parameter's placement is called."""
    uses = parameter_uses(graph)
    placements = resolve_placements(plan, graph)
    return {
        name: word_of(placements[name], spec, role_for(name, uses.get(name, ())))
        for name, spec in graph.parameters.items()
    }


def _flowing_words(plan: Plan, graph: ModelGraph) -> dict[str, str]:
    return dict(zip((b.name for b in graph.blocks), output_words(plan, graph), strict=True))


def _recompute_words(plan: Plan, graph: ModelGraph) -> dict[str, str]:
    words = map(str, recompute_words(plan, graph))
    return dict(zip((b.name for b in graph.blocks), words, strict=True))


def _operator_words(plan: Plan, graph: ModelGraph) -> dict[str, str]:
    return {line.pattern: line.word for line in plan.operators}


_Words = Callable[[Plan, ModelGraph], dict[str, str]]
_ON_THE_TENSOR_AXIS: Mapping[str, _Words] = {
    "tensor": _placed_words,
    "activations": _flowing_words,
    "operators": _operator_words,
}


def _lines(section: str, mine: Mapping[str, str], theirs: Mapping[str, str]) -> Iterable[Difference]:
    """Modules that change from one word to another, those of one change together."""
    changed: dict[tuple[str, str, str], list[str]] = {}
    for name in dict.fromkeys([*mine, *theirs]):
        pair = mine.get(name, UNSAID), theirs.get(name, UNSAID)
        if pair[0] != pair[1]:
            group = generalised(name.rpartition(".")[0]) if section == "tensor" else ""
            changed.setdefault((*pair, group), []).append(name)
    for (one, other, _), names in changed.items():
        patterns = _patterns(names, mine) if section != "operators" else tuple(names)
        more = f" and {len(patterns) - 1} more" if len(patterns) > 1 else ""
        yield Difference(
            f"{section}.{patterns[0]}{more}",
            one,
            other,
            _of_lines(section, patterns, one),
            _of_lines(section, patterns, other),
        )


def _patterns(names: Sequence[str], known: Iterable[str]) -> tuple[str, ...]:
    """The fewest patterns that name these and no others."""
    if set(names) == set(known):
        return ("*",)
    general = tuple(dict.fromkeys(map(generalised, names)))
    if len(general) < len(names):
        named = {name for name in known if any(matches(pattern, name) for pattern in general)}
        if named == set(names):
            return general
    return compact(names)


def _of_lines(section: str, patterns: Iterable[str], word: str) -> Plan:
    if word == UNSAID:
        return Plan()
    lines = tuple(PatternLine(pattern, word) for pattern in patterns)
    return {
        "tensor": Plan(tensor=lines),
        "activations": Plan(activations=lines),
        "operators": Plan(operators=lines),
        "recompute": Plan(recompute=lines),
    }[section]
