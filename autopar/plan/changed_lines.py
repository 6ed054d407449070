"""The lines in which two plan files differ, key by key, without the model that they are for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autopar.plan.decisions import Plan
from autopar.plan.document import to_document

_NOTHING = ""


@dataclass(frozen=True, slots=True)
class ChangedLine:
    """A line that one plan has and the other has not, or has otherwise.

    Attributes:
        key: dotted, e.g. ``pipeline.stages.1``.
        first, second: as either file writes it; empty where it does not.
    """

    key: str
    first: str
    second: str


def changed_lines(first: Plan, second: Plan) -> tuple[ChangedLine, ...]:
    """Where two plans differ, in the order of the file."""
    mine, theirs = _flat(to_document(first)), _flat(to_document(second))
    return tuple(
        ChangedLine(key, mine.get(key, _NOTHING), theirs.get(key, _NOTHING))
        for key in dict.fromkeys([*mine, *theirs])
        if mine.get(key) != theirs.get(key)
    )


def _flat(document: Mapping[str, Any], head: str = "") -> dict[str, str]:
    """Dotted keys with their values as text; the stages line by line."""
    found: dict[str, str] = {}
    for key, value in document.items():
        dotted = f"{head}{key}"
        if isinstance(value, Mapping):
            found |= _flat(value, f"{dotted}.")
        elif dotted == "pipeline.stages":
            found |= {f"{dotted}.{i}": ", ".join(map(str, stage)) for i, stage in enumerate(value)}
        elif isinstance(value, list):
            found[dotted] = ", ".join(map(str, value))
        else:
            found[dotted] = str(value).lower() if isinstance(value, bool) else str(value)
    return found
