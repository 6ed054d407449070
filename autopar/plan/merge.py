"""Merging of partial plans: several sets of constraints, or one that overrides another, become one plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from autopar.plan.agreement import check_agreement
from autopar.plan.decisions import MESH_AXES, Mesh, PatternLine, Plan
from autopar.plan.patterns import matches

_ATTRIBUTES = {
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
_MESH = (*MESH_AXES, "order")
_PATTERNS = ("tensor", "activations", "operators", "recompute")


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
    values: dict[str, object] = {}
    for key, attribute in _ATTRIBUTES.items():
        values[attribute] = _one(
            first, second, key, getattr(first, attribute), getattr(second, attribute), strict
        )
    mesh = {
        key: _one(first, second, f"mesh.{key}", getattr(first.mesh, key), getattr(second.mesh, key), strict)
        for key in _MESH
    }
    base, other = (first, second) if first.places and first.path else (second, first)
    sources = dict(base.sources)
    kept_from_other = (
        _keys(other) if other is first else [key for key in _keys(other) if not _has(first, key)]
    )
    for key in kept_from_other:
        sources[key] = _where(other, key)
    for section in _PATTERNS:
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
    return replace(base, **values, mesh=Mesh(**mesh), sources=sources)  # type: ignore[arg-type]


def _one(first: Plan, second: Plan, key: str, mine: object, theirs: object, strict: bool) -> object:
    if mine is None or theirs is None or mine == theirs:
        return theirs if mine is None else mine
    if strict:
        raise second.error(
            key,
            f"{key} is {_text(theirs)} here and {_text(mine)} in {_where(first, key)}; "
            "both are constraints: keep one",
        )
    return mine


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
    keys = [key for key, attribute in _ATTRIBUTES.items() if getattr(plan, attribute) is not None]
    keys += [f"mesh.{key}" for key in _MESH if getattr(plan.mesh, key) is not None]
    return keys + [f"{section}.{line.pattern}" for section in _PATTERNS for line in getattr(plan, section)]


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
