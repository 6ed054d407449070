"""Which lines of a plan were made by hand: fixed when it was planned, or edited since.

``plan`` writes a code for every line that it chose itself into the section ``predicted``. A line whose code
is there is the planner's; every other is a person's, as are all lines of a file without codes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from typing import Any

from autopar.plan.decisions import PATTERN_SECTIONS, Mesh, Plan
from autopar.plan.document import to_document
from autopar.plan.merge import ATTRIBUTES

_NOT_DECIDED = ("version", "model", "cluster")


def decisions(plan: Plan) -> dict[str, Any]:
    """Every decision of a plan as plain data by dotted key, in the order of the file."""
    found: dict[str, Any] = {}
    for section, value in to_document(plan).items():
        if section in _NOT_DECIDED:
            continue
        if section in PATTERN_SECTIONS and not isinstance(value, dict):
            found[f"{section}.*"] = value  # one word for all
        elif isinstance(value, dict):
            found |= {f"{section}.{name}": below for name, below in value.items()}
        else:
            found[section] = value
    return found


def codes_of_chosen(plan: Plan, constraints: Plan) -> tuple[str, ...]:
    """The codes of what a complete plan says beyond what was asked for."""
    asked = decisions(constraints)
    return tuple(_code(key, value) for key, value in decisions(plan).items() if asked.get(key) != value)


def hand_made(plan: Plan) -> Plan:
    """The plan without the lines that the planner chose."""
    chosen = set(plan.chosen)
    for key, value in decisions(plan).items():
        if _code(key, value) in chosen:
            plan = without(plan, key)
    return plan


def without(plan: Plan, key: str) -> Plan:
    """The plan without one of its ``decisions``."""
    section, _, below = key.partition(".")
    bounds = {k: bound for k, bound in plan.bounds.items() if k != key}
    if section in PATTERN_SECTIONS:
        kept = tuple(line for line in getattr(plan, section) if line.pattern != below)
        return replace(plan, **{section: kept})  # type: ignore[arg-type]
    if section == "mesh":
        degrees = {name: getattr(plan.mesh, name) for name in ("pipeline", "data", "tensor", "order")}
        return replace(plan, mesh=Mesh(**{**degrees, below: None}), bounds=bounds)
    if key == "pipeline.blocks_per_stage":
        return replace(plan, stage_sizes=())
    return replace(plan, **{ATTRIBUTES[key]: None}, bounds=bounds)  # type: ignore[arg-type]


def _code(key: str, value: Any) -> str:
    """Four letters that another line has by chance once in 16 million."""
    text = json.dumps([key, value], ensure_ascii=True)
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()[:3]).decode()
