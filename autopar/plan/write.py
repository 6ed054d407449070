"""Writing of plan files: for people to read and edit, with comments, the same bytes for the same plan."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import yaml

from autopar.plan.decisions import Plan
from autopar.plan.document import to_document
from autopar.plan.schema import editor_line

_WIDTH = 100
_COMMENT_COLUMN = 47

_HEAD = (
    editor_line("plan"),
    "# Every line may be edited or deleted; `autopar check` re-costs this file, and",
    "# `autopar plan MODEL --with FILE` fills in again whatever was deleted.",
)

_COMMENTS = {
    "model.fingerprint": "for another model the plan is refused",
    "batch": "samples per step; per forward of one data rank",
    "mesh": "the tensor axis varies fastest: it stays inside a node",
    "mesh with order": "order: slowest varying axis first; the last stays inside a node",
    "precision": "bf16 | fp16 | fp32; master weights are fp32",
    "optimizer": "adamw | adam | sgd | sgd-momentum: bytes of state",
    "pipeline.schedule": "gpipe | 1f1b | interleaved | zero-bubble | zbv",
    "pipeline.virtual": "stages a rank holds: interleaved 2 or more, zbv 2",
    "pipeline.stages": "every block exactly once, in order; ranges are inclusive",
    "tensor": "column | row | vocab | replicate; the first match wins",
    "activations": "what flows out of a block: replicate | sequence | batch",
    "operators": "inner operators that are split otherwise than the lines above lead to",
    "zero": "over data, 1 splits optimizer, 2 + gradients, 3 + parameters",
    "shard_group": "neighbouring data ranks among which zero splits",
    "recompute": "none | selective | full",
    "offload": "none, or some of optimizer, parameters, activations",
    "compile": "true: torch.compile between the collectives; predictions are without it",
    "predicted": "written by autopar, ignored when read",
}

_BLOCK_STYLE = {"model", "pipeline", "tensor", "operators", "predicted"}
"""Sections that take one line a key; the others stand on one line while it is short enough."""

_PLAIN = re.compile(r"[A-Za-z0-9_/.][A-Za-z0-9_/.*-]*")
_PLAIN_PREDICTED = re.compile(r"[A-Za-z0-9_/.][A-Za-z0-9_/.*()%µ +-]*")


def write_plan(plan: Plan, predicted: Mapping[str, Any] | None = None) -> str:
    """The YAML text of a plan.

    Args:
        plan: whole or partial; ``read_plan`` of the text gives an equal one.
        predicted: what the plan is expected to do, as nested mappings and lists of texts and numbers, set
            below the plan for people to read.
    """
    document = to_document(plan)
    lines = list(_HEAD)
    for key, value in document.items():
        lines += _section(key, value, key, "")
    told = {**(predicted or {}), **({"chosen": " ".join(plan.chosen)} if plan.chosen else {})}
    if told:
        lines += ["", *_section("predicted", told, "predicted", "")]
    return "\n".join(lines) + "\n"


def _section(name: str, value: Any, key: str, indent: str) -> list[str]:
    """The lines of one key: on one line where style and width allow, else one line an entry below it."""
    has_order = key == "mesh" and "order" in value
    comment = _COMMENTS.get("mesh with order" if has_order else key, "")
    head = f"{indent}{_scalar(name)}:"
    if not isinstance(value, dict | list):
        return [_commented(f"{head} {_scalar(value, key)}", comment)]
    flow = f"{head} {_flow(value, key)}"
    spread = key in _BLOCK_STYLE or key in ("pipeline.stages", "predicted.stages")
    if not value or (not spread and len(flow) <= _WIDTH):
        return [_commented(flow, comment)]
    lines = [_commented(head, comment)]
    if isinstance(value, dict):
        for below, entry in value.items():
            lines += _section(str(below), entry, f"{key}.{below}", indent + "  ")
        return lines
    for entry in value:
        lines += _item(entry, key, indent + "  ")
    return lines


def _item(value: Any, key: str, indent: str) -> list[str]:
    """The lines of a list's item; a list that is too long for one line is wrapped inside its brackets."""
    line = f"{indent}- {_flow(value, key)}"
    if len(line) <= _WIDTH or not isinstance(value, list):
        return [line]
    lines, current = [], f"{indent}- ["
    for i, entry in enumerate(value):
        text = _flow(entry, key) + ("]" if i == len(value) - 1 else ", ")
        if len(current) + len(text) > _WIDTH and not current.endswith("["):
            lines.append(current.rstrip())
            current = f"{indent}   "
        current += text
    return [*lines, current]


def _flow(value: Any, key: str) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_scalar(str(k))}: {_flow(v, key)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(entry, key) for entry in value) + "]"
    return _scalar(value, key)


def _commented(line: str, comment: str) -> str:
    return f"{line:<{_COMMENT_COLUMN - 1}} # {comment}" if comment else line


def _scalar(value: Any, key: str = "") -> str:
    """A scalar that reads back as itself, quoted only where it must be."""
    if isinstance(value, str):
        plain = _PLAIN_PREDICTED if key.startswith("predicted") else _PLAIN
        if plain.fullmatch(value) and not value.endswith(" ") and _reads_as_text(value):
            return value
        style = '"'
        return _dump(value, style)
    return _dump(value, None)


def _dump(value: Any, style: str | None) -> str:
    text: str = yaml.safe_dump(value, default_style=style, allow_unicode=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def _reads_as_text(value: str) -> bool:
    """Whether a plain scalar is text to every YAML reader: no number, boolean, null or date."""
    try:
        float(value.replace("_", ""))
        return False
    except ValueError:
        pass
    try:
        return bool(yaml.safe_load(value) == value)
    except yaml.YAMLError:  # `...` ends a document
        return False
