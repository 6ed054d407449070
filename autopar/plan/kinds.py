"""Kinds of single values in a plan: how each is read, and what a JSON Schema says of it.

``plan.keys`` says which key holds which: one description for the reader and for editors. Lists and mappings
are in ``plan.composed_kinds``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

from autopar.errors import UsageError
from autopar.plan.bounds import PATTERN, Bound, parse_bound
from autopar.plan.entry import Entry, describe
from autopar.units import parse_bytes

Schema = dict[str, Any]

MOST = 2**30
"""No plan counts further: more is a slip of the finger."""

_SHARD = re.compile(r"shard\(\s*\d{1,3}\s*(,\s*\d{1,6}\s*)?\)")
_SIZE = r"^\s*[0-9]+(\.[0-9]+)?\s*[A-Za-z]*\s*$"


class Kind(Protocol):
    """What stands under a key."""

    def read(self, entry: Entry) -> Any:
        """The decision; raises a ``PlanError`` where the value is none."""
        ...

    def schema(self) -> Schema:
        """The JSON Schema of the value."""
        ...


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number, or a bound on it where the planner may be left a choice."""

    low: int = 1
    high: int = MOST
    bounded: bool = False

    def read(self, entry: Entry) -> int | Bound:
        """The number or the bound."""
        if self.bounded and isinstance(entry.value, str):
            return read_bound(entry, self.low, self.high)
        return entry.integer(self.low, self.high)

    def schema(self) -> Schema:
        """Of an integer or a bound."""
        number: Schema = {"type": "integer", "minimum": self.low, "maximum": self.high}
        return {"anyOf": [number, bound_schema()]} if self.bounded else number


@dataclass(frozen=True, slots=True)
class Word:
    """One of some words."""

    words: tuple[str, ...]

    def read(self, entry: Entry) -> str:
        """The word."""
        return entry.word(self.words)

    def schema(self) -> Schema:
        """Of the words."""
        return {"enum": list(self.words)}


@dataclass(frozen=True, slots=True)
class OneOf:
    """A word, or several of which the planner may take any: a list, or ``selective | full``."""

    words: tuple[str, ...]

    def read(self, entry: Entry) -> str:
        """The word, or those allowed joined by bars, in the order of ``words``."""
        if isinstance(entry.value, str) and "|" in entry.value:
            entry = entry.with_value([word.strip() for word in entry.value.split("|")])
        if not isinstance(entry.value, list):
            return entry.word(self.words, also=", or a list of those that may be chosen")
        chosen = {item.word(self.words) for item in entry.items()}
        if not chosen:
            entry.fail(f"'{entry.key}' allows nothing; list some of {', '.join(self.words)}")
        return " | ".join(word for word in self.words if word in chosen)

    def schema(self) -> Schema:
        """Of a word, a list, or words joined by bars."""
        word = Word(self.words).schema()
        any_word = "|".join(self.words)
        text = {"type": "string", "pattern": rf"^({any_word})( *\| *({any_word}))*$"}
        return {"anyOf": [word, {"type": "array", "items": word, "minItems": 1}, text]}


@dataclass(frozen=True, slots=True)
class Placement:
    """A word for a placement, or ``shard(d)``."""

    words: tuple[str, ...]

    def read(self, entry: Entry) -> str:
        """The word; of ``shard(d)``, without blanks that do not matter."""
        if isinstance(entry.value, str) and _SHARD.fullmatch(entry.value.strip()):
            return re.sub(r"\s*,\s*", ", ", re.sub(r"\s*([()])\s*", r"\1", entry.value.strip()))
        return entry.word(self.words, also=", shard(d)")

    def schema(self) -> Schema:
        """Of the words and of ``shard(d)``."""
        shard = {"type": "string", "pattern": rf"^\s*{_SHARD.pattern}\s*$"}
        return {"anyOf": [{"enum": list(self.words)}, shard]}


@dataclass(frozen=True, slots=True)
class Text:
    """A text that is not empty."""

    example: str

    def read(self, entry: Entry) -> str:
        """The text."""
        return entry.text(self.example)

    def schema(self) -> Schema:
        """Of a text."""
        return {"type": "string", "pattern": r"\S", "examples": [self.example]}


@dataclass(frozen=True, slots=True)
class YesNo:
    """``true`` or ``false``."""

    def read(self, entry: Entry) -> bool:
        """Which."""
        return entry.boolean()

    def schema(self) -> Schema:
        """Of a boolean."""
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes, e.g. ``70GiB``."""

    def read(self, entry: Entry) -> int:
        """Bytes."""
        if not isinstance(entry.value, str):
            entry.fail(
                f"'{entry.key}' is {describe(entry.value)}; write a size with its unit, e.g. 70GiB or 75GB"
            )
        try:
            return parse_bytes(entry.text("70GiB"))
        except UsageError as problem:
            entry.fail(str(problem))

    def schema(self) -> Schema:
        """Of a text such as ``70GiB``."""
        return {"type": "string", "pattern": _SIZE, "examples": ["70GiB"]}


def read_bound(entry: Entry, low: int, high: int) -> Bound:
    """The bound that a text says; fails where it is none, or one that no number from low to high meets."""
    allowed = f"a whole number from {low} to {high}" if high < MOST else f"a whole number of at least {low}"
    try:
        bound = parse_bound(entry.value)
    except ValueError as problem:
        entry.fail(f"'{entry.key}': {problem}")
    if bound is None:
        entry.fail(
            f"'{entry.key}' is {describe(entry.value)}; write {allowed}, or a bound such as \"<=4\", "
            '">=2" or 2-8'
        )
    if bound.meet(Bound(low, high)) is None:
        entry.fail(f"'{entry.key}' is {bound}, which leaves no number; write {allowed}")
    return bound


def bound_schema() -> Schema:
    """Of a text such as ``<=4``."""
    return {"type": "string", "pattern": rf"^\s*{PATTERN}\s*$", "examples": ["<=4", ">=2", "2-8"]}
