"""What a command that fails prints under ``--json``: why, as data; people read the same on stderr."""

from __future__ import annotations

from typing import Any

from autopar.errors import AutoparError, FileError, InfeasibleError

_STATUSES = {1: "failed", 2: "usage", 3: "infeasible", 4: "invalid", 5: "not captured", 6: "different"}


def failure_document(problem: AutoparError) -> dict[str, Any]:
    """The document, schema 1: the status in a word, the message, and every error of a file with its place."""
    document: dict[str, Any] = {
        "schema": 1,
        "status": _STATUSES[problem.exit_status],
        "exit_status": problem.exit_status,
        "message": str(problem),
    }
    if isinstance(problem, InfeasibleError):
        document |= {
            "binding": problem.binding,
            "shortfall_bytes": problem.shortfall_bytes,
            "remedies": problem.remedies,
        }
    if isinstance(problem, FileError):
        document["errors"] = [_error(each) for each in problem.problems]
    return document


def _error(problem: FileError) -> dict[str, Any]:
    return {
        "path": problem.path or None,
        "line": problem.line,
        "column": problem.column,
        "key": problem.key or None,
        "message": problem.message,
    }
