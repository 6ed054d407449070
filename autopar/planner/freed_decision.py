"""A plan's decisions as constraints, but for one that is left to the planner."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from autopar.errors import UsageError, closest_match
from autopar.plan.decisions import PATTERN_SECTIONS, Mesh, PatternLine, Plan
from autopar.plan.merge import ATTRIBUTES

FREEABLE = (
    "batch.micro",
    "mesh",
    "mesh.pipeline",
    "mesh.data",
    "mesh.tensor",
    "mesh.order",
    "pipeline.schedule",
    "pipeline.stages",
    "tensor",
    "activations",
    "operators",
    "zero",
    "shard_group",
    "recompute",
    "offload",
)
"""Decisions that can be left to the planner; single lines of sections too, by their pattern."""

# Attributes of a plan: without what is given, the model and the devices.
_DECISIONS = (
    "mesh",
    *PATTERN_SECTIONS,
    *(name for key, name in ATTRIBUTES.items() if key not in ("model", "cluster")),
)


def without(plan: Plan, key: str) -> Plan:
    """A plan's decisions as constraints, but for one; what asks for it goes with it.

    Raises:
        UsageError: there is no such decision.
    """
    rest = Plan(**{name: getattr(plan, name) for name in _DECISIONS})
    dropped = _dropped(key, rest)
    if dropped is None:
        raise UsageError(
            f"--free {key}: that is no decision of a plan{closest_match(key, FREEABLE)} "
            f"(known: {', '.join(FREEABLE)})"
        )
    return replace(rest, **dropped)


def _dropped(key: str, plan: Plan) -> dict[str, Any] | None:
    """What replaces the decision and those that follow from it; None: there is no such decision."""
    section, _, below = key.partition(".")
    if section in PATTERN_SECTIONS:
        return {section: _lines(key, section, below, plan) if below else ()}
    if key == "mesh.order":
        return {"mesh": Mesh(plan.mesh.pipeline, plan.mesh.data, plan.mesh.tensor)}
    if section == "mesh" and key in FREEABLE:
        # The devices are given, so that no degree can change alone; stages and placements follow degrees.
        freed = {"mesh": Mesh(), "stages": None, "micro_batch": None}
        return freed | dict.fromkeys(("tensor", "activations", "operators"), ())
    return {
        "batch.micro": {"micro_batch": None},
        "pipeline.schedule": {"schedule": None, "virtual": None, "stages": None},
        "pipeline.stages": {"stages": None},
        "zero": {"zero": None},
        "shard_group": {"shard_group": None},
        "offload": {"offload": None},
    }.get(key)


def _lines(key: str, section: str, pattern: str, plan: Plan) -> tuple[PatternLine, ...]:
    lines: tuple[PatternLine, ...] = getattr(plan, section)
    kept = tuple(line for line in lines if line.pattern != pattern)
    if len(kept) == len(lines):
        known = [f"{section}.{line.pattern}" for line in lines]
        raise UsageError(f"--free {key}: the plan has no such line{closest_match(key, known)}")
    return kept
