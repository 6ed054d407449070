"""Merging of partial plans: several sets of constraints, or one that overrides another, become one plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from autopar.plan.agreement import check_agreement
from autopar.plan.bounds import Bound, StageSize
from autopar.plan.decisions import MESH_AXES, PATTERN_SECTIONS, Mesh, PatternLine, Plan
from autopar.plan.patterns import matches

ATTRIBUTES = {
    "model": "model",
    "cluster": "cluster",
    "batch.global": "global_batch",
    "batch.micro": "micro_batch",
    "precision": "precision",
    "optimizer": "optimizer",
    "pipeline.schedule": "schedule",
    "pipeline.virtual": "virtual",
    "pipeline.stages": "stages",
    "zero": "zero",
    "shard_group": "shard_group",
    "offload": "offload",
    "compile": "compile",
}
"""Attribute of ``Plan`` by key, of decisions that are neither degrees nor lines of patterns."""
_MESH = (*(f"mesh.{axis}" for axis in MESH_AXES), "mesh.order")


def merge(*plans: Plan) -> Plan:
    """All constraints of all plans; in a pattern section the lines of an earlier plan stand first.

    Raises:
        PlanError: two plans decide the same thing differently; the message names both.
    """
    result = Plan()
    for plan in plans:
        result = _join(result, plan, strict=True)
    check_agreement(result)
    return result


def override(base: Plan, *changes: Plan) -> Plan:
    """``base`` with everything that ``changes`` say put in its place; later changes win.

    Raises:
        PlanError: the result contradicts itself, e.g. a mesh that does not multiply to the devices.
    """
    result = base
    for change in changes:
        result = _join(change, result, strict=False)
    check_agreement(result)
    return result


def _join(first: Plan, second: Plan, *, strict: bool) -> Plan:
    """What either says; where both do, the first, which must say the same if ``strict``."""
    values: dict[str, Any] = {}
    bounds: dict[str, Bound] = {}
    for key in (*ATTRIBUTES, *_MESH):
        decision = _one(first, second, key, strict)
        if isinstance(decision, Bound):
            bounds[key] = decision
            decision = None
        values[ATTRIBUTES.get(key, key)] = decision
    mesh = Mesh(*(values.pop(key) for key in _MESH))
    base, other = (first, second) if first.places and first.path else (second, first)
    sources = dict(base.sources)
    kept_from_other = (
        _keys(other) if other is first else [key for key in _keys(other) if not _has(first, key)]
    )
    for key in kept_from_other:
        sources[key] = _where(other, key)
    for section in PATTERN_SECTIONS:
        mine: tuple[PatternLine, ...] = getattr(first, section)
        theirs: tuple[PatternLine, ...] = getattr(second, section)
        if strict:
            _check_lines(first, second, section, mine, theirs)
        lines = [line if first is base else replace(line, line=None) for line in mine]
        lines += [
            line if second is base else replace(line, line=None)
            for line in theirs
            if not any(matches(earlier.pattern, line.pattern) for earlier in mine)  # it could match nothing
        ]
        values[section] = tuple(lines)
    sizes = _stage_sizes(first, second, strict)
    return replace(base, **values, mesh=mesh, bounds=bounds, stage_sizes=sizes, sources=sources)


def _one(first: Plan, second: Plan, key: str, strict: bool) -> object:
    """What two plans together say under a key: a decision, a bound on it, or nothing."""
    mine, theirs = _decision(first, key), _decision(second, key)
    if mine is None or theirs is None or mine == theirs:
        return theirs if mine is None else mine
    if not strict:
        return mine
    both = _within(mine, theirs)
    if both is None:
        raise second.error(
            key,
            f"{key} is {_text(theirs)} here and {_text(mine)} in {_where(first, key)}; "
            "both are constraints: keep one",
        )
    return both


def _decision(plan: Plan, key: str) -> object:
    if key in _MESH:
        decision = getattr(plan.mesh, key.removeprefix("mesh."))
    else:
        decision = getattr(plan, ATTRIBUTES[key])
    return plan.bounds.get(key) if decision is None else decision


def _within(one: object, other: object) -> object:
    """What meets two decisions that differ, of which at least one is a bound; None where nothing does."""
    if isinstance(one, Bound) and isinstance(other, Bound):
        return one.meet(other)
    bound, number = (one, other) if isinstance(one, Bound) else (other, one)
    if not isinstance(bound, Bound):
        return None
    levels = number if isinstance(number, tuple) else (number,)
    return number if all(isinstance(n, int) and bound.holds(n) for n in levels) else None


def _stage_sizes(first: Plan, second: Plan, strict: bool) -> tuple[StageSize, ...]:
    """The lines of both: every one holds. Of two for the same stages, what both allow, or else the first."""
    sizes = {size.stages: size.bound for size in first.stage_sizes}
    for size in second.stage_sizes:
        mine = sizes.get(size.stages)
        both = size.bound if mine is None else mine.meet(size.bound) if strict else mine
        if both is None:
            key = f"pipeline.blocks_per_stage.{size.stages}"
            raise second.error(
                key,
                f"{key} is {size.bound} here and {mine} in {_where(first, key)}; both are constraints: keep "
                "one",
            )
        sizes[size.stages] = both
    return tuple(StageSize(stages, bound) for stages, bound in sizes.items())


def _check_lines(
    first: Plan, second: Plan, section: str, mine: tuple[PatternLine, ...], theirs: tuple[PatternLine, ...]
) -> None:
    """A line of the second plan that an earlier, wider line of the first would silence says nothing else."""
    for later in theirs:
        for earlier in mine:
            if earlier.word != later.word and matches(earlier.pattern, later.pattern):
                raise second.error(
                    f"{section}.{later.pattern}",
                    f"{section} gives '{later.pattern}' {later.word} here, but {_where(first, section)} "
                    f"gives '{earlier.pattern}' {earlier.word}; both are constraints: keep one",
                )


def _keys(plan: Plan) -> list[str]:
    """The dotted keys of everything that a plan decides."""
    keys = [key for key in (*ATTRIBUTES, *_MESH) if _decision(plan, key) is not None]
    keys += [f"pipeline.blocks_per_stage.{size.stages}" for size in plan.stage_sizes]
    return keys + [
        f"{section}.{line.pattern}" for section in PATTERN_SECTIONS for line in getattr(plan, section)
    ]


def _has(plan: Plan, key: str) -> bool:
    return key in _keys(plan)


def _where(plan: Plan, key: str) -> str:
    return plan.where(key) or "the command line"


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} stages" if value and isinstance(value[0], tuple) else str(list(value))
    if isinstance(value, Mapping):
        return str(dict(value))
    return getattr(value, "source", None) or getattr(value, "device", None) or str(value)
