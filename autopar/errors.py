"""The exception tree: every error that a user can meet, each with its exit status.

AutoparError (1, our bug unless a subclass says otherwise)
 ├── UsageError (2)          the command line or an argument is wrong
 ├── InfeasibleError (3)     no plan fits; names the binding constraint and the shortfall
 ├── FileError (4)           a plan, cluster or cost-model file is wrong at ``path:line``
 │    ├── PlanError
 │    └── CostModelError
 ├── CaptureError (5)        the model cannot be captured; names the user's source line
 ├── DifferenceError (6)     verify found a difference
 └── DistributedError (1)    a distributed run failed or timed out; names the ranks
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

_LONGEST_MESSAGE = 2_000


class AutoparError(Exception):
    """Base of every error that autopar raises on purpose."""

    exit_status = 1


class UsageError(AutoparError, ValueError):
    """A command line, an argument or a model file that cannot be used as given."""

    exit_status = 2


class InfeasibleError(AutoparError):
    """No plan satisfies the constraints.

    Attributes:
        binding: the constraint that cannot be met, in a few words.
        shortfall_bytes: memory missing on the tightest device, if memory binds.
        remedies: what would do, by kind, if memory binds; None or an empty list where nothing of a kind does.
    """

    exit_status = 3

    def __init__(
        self,
        message: str,
        *,
        binding: str = "",
        shortfall_bytes: int | None = None,
        remedies: Mapping[str, int | list[str] | None] | None = None,
    ) -> None:
        super().__init__(message)
        self.binding = binding
        self.shortfall_bytes = shortfall_bytes
        self.remedies = dict(remedies or {})


class FileError(AutoparError):
    """A file that is wrong at a known place; the message starts with ``path:line:column: ``.

    Attributes:
        message: without the place.
        key: dotted key of the decision that is wrong, e.g. ``mesh.tensor``; empty where there is none.
    """

    exit_status = 4

    def __init__(
        self,
        message: str,
        *,
        path: str = "",
        line: int | None = None,
        column: int | None = None,
        key: str = "",
    ) -> None:
        self.message = _on_one_line(message)
        self.path, self.line, self.column, self.key = path, line, column, key
        self._problems: tuple[Self, ...] = ()
        where = _on_one_line(place_text(path, line, column))
        super().__init__(f"{where}: {self.message}" if path else self.message)

    @property
    def problems(self) -> tuple[Self, ...]:
        """Every error of the file, each by itself, where several were found; else this one."""
        return self._problems or (self,)

    @classmethod
    def of(cls, problems: Sequence[Self]) -> Self:
        """One error that tells of several, a line each, in the order of the file."""
        each = [one for problem in problems for one in problem.problems]
        if len(each) == 1:
            return each[0]
        each.sort(key=lambda one: (one.line or 0, one.column or 0))
        first = each[0]
        found = cls(first.message, path=first.path, line=first.line, column=first.column, key=first.key)
        found.args = ("\n".join(str(one) for one in each),)
        found._problems = tuple(each)
        return found


class PlanError(FileError):
    """A plan file that is malformed, or one (or a ``--set``) that contradicts the model or the cluster."""


class CostModelError(FileError):
    """A cost-model or cluster file that is malformed."""


class CaptureError(AutoparError):
    """The model could not be captured as a graph; the message names the user's source line and a remedy."""

    exit_status = 5


class DifferenceError(AutoparError):
    """The parallel run and the single process disagree."""

    exit_status = 6


class DistributedError(AutoparError):
    """A distributed run failed or timed out; the message names the ranks."""


def closest_match(name: str, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` for the known name closest to ``name``, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def place_text(path: str, line: int | None = None, column: int | None = None) -> str:
    """``plan.yaml:14:3``, or as much of it as is known."""
    return ":".join(str(part) for part in (path, line, column) if part is not None)


def _on_one_line(message: str) -> str:
    """The message with whatever a file smuggles into it (line breaks, terminal codes) written out."""
    if len(message) > _LONGEST_MESSAGE:
        message = f"{message[: _LONGEST_MESSAGE // 2]} ... {message[-_LONGEST_MESSAGE // 4 :]}"
    if message.isprintable():
        return message
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
