"""One value of a plan document with its place: answers the reader's questions, or fails at its line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeVar

from autopar.errors import PlanError, closest_match
from autopar.hardware.yaml_lines import Place
from autopar.plan.decisions import Scalar

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Entry:
    """A value of the document.

    Attributes:
        value: plain data: mapping, list or scalar.
        key: its dotted key; ``""`` for the document.
        places: of the dotted keys of the whole document.
        path: the file (or the ``--set`` that stands for it), for messages.
        problems: what is wrong with the document, as far as it has been read; shared by all its entries.
    """

    value: Any
    key: str
    places: Mapping[str, Place]
    path: str
    problems: list[PlanError] = field(default_factory=list)

    def problem(self, message: str) -> PlanError:
        """An error at the place of this value, or of the nearest key around it."""
        key = self.key
        while key and key not in self.places:
            key = key.rpartition(".")[0]
        line, column = self.places.get(key) or (None, None)
        return PlanError(message, path=self.path, line=line, column=column, key=self.key)

    def fail(self, message: str) -> NoReturn:
        """Raises a ``PlanError`` at the place of this value."""
        raise self.problem(message)

    def note(self, message: str) -> None:
        """Keeps a ``PlanError`` that does not hinder the reading of the rest."""
        self.problems.append(self.problem(message))

    def attempt(self, read: Callable[[Entry], _T]) -> _T | None:
        """What ``read`` makes of this value; None, and the problem kept, where it fails."""
        try:
            return read(self)
        except PlanError as problem:
            self.problems.append(problem)
            return None

    def with_value(self, value: Any) -> Entry:
        """The same place with another value."""
        return replace(self, value=value)

    @property
    def line(self) -> int | None:
        """Of the file."""
        place = self.places.get(self.key)
        return None if place is None else place.line

    def at(self, name: str | int, value: Any) -> Entry:
        """The entry of a key or an item below this one."""
        return replace(self, value=value, key=f"{self.key}.{name}" if self.key else str(name))

    def unknown_key(self, name: str, known: Iterable[str]) -> None:
        """Notes that this entry's own key is none of those known."""
        known, section = list(known), self.key.removesuffix(name).rstrip(".")
        where = f"in '{section}'" if section else "of a plan"
        self.note(f"'{name}' is not a key {where}{closest_match(name, known)} (known: {', '.join(known)})")

    def is_misspelt(self, name: str) -> bool:
        """Whether a key that is not known was taken for this one."""
        return any(f"did you mean '{name}'?" in problem.message for problem in self.problems)

    def pairs(self) -> Iterator[tuple[str, Entry]]:
        """The names and entries of a mapping, in the order of the file."""
        if self.value is None:
            return
        if not isinstance(self.value, dict):
            what = f"'{self.key}'" if self.key else "the file"
            self.fail(f"{what} is {describe(self.value)}; write a mapping, one 'key: value' a line")
        for name, value in self.value.items():
            yield name, self.at(name, value)

    def items(self) -> list[Entry]:
        """The entries of a list."""
        if not isinstance(self.value, list):
            self.fail(f"'{self.key}' is {describe(self.value)}; write a list, e.g. [a, b]")
        return [self.at(i, value) for i, value in enumerate(self.value)]

    def integer(self, low: int, high: int | None = None) -> int:
        """A whole number from ``low`` to ``high``."""
        allowed = (
            f"a whole number of at least {low}"
            if high is None or high >= 2**30
            else f"a whole number from {low} to {high}"
        )
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            self.fail(f"'{self.key}' is {describe(self.value)}; write {allowed}")
        if self.value < low or (high is not None and self.value > high):
            more = f", and no more than {high}" if high is not None and self.value > high >= 2**30 else ""
            self.fail(f"'{self.key}' is {describe(self.value)}; write {allowed}{more}")
        return self.value

    def boolean(self) -> bool:
        """``true`` or ``false``."""
        if not isinstance(self.value, bool):
            self.fail(f"'{self.key}' is {describe(self.value)}; write true or false")
        return self.value

    def word(self, allowed: Iterable[str], also: str = "") -> str:
        """One of some words; ``also`` says what else the caller would take."""
        allowed = list(allowed)
        if not isinstance(self.value, str):
            self.fail(f"'{self.key}' is {describe(self.value)} (allowed: {', '.join(allowed)}{also})")
        if self.value not in allowed:
            hint = closest_match(self.value, allowed)
            self.fail(f"'{self.key}' is '{_short(self.value)}'{hint} (allowed: {', '.join(allowed)}{also})")
        return self.value

    def text(self, example: str) -> str:
        """A text that is not empty."""
        if not isinstance(self.value, str) or not self.value.strip():
            self.fail(f"'{self.key}' is {describe(self.value)}; write a text, e.g. {example}")
        return self.value

    def name(self) -> str:
        """A module or block name; numbers are taken, as ``nn.Sequential`` names its children so."""
        if isinstance(self.value, int) and not isinstance(self.value, bool) and self.value >= 0:
            return str(self.value)
        return self.text("blocks.0")

    def scalar(self) -> Scalar:
        """A number, a text, a boolean or nothing."""
        if isinstance(self.value, dict | list):
            self.fail(f"'{self.key}' is {describe(self.value)}; write one number, text, true, false or null")
        value: Scalar = self.value
        if isinstance(value, float) and not math.isfinite(value):
            self.fail(f"'{self.key}' is {value}; write a number that is finite")
        return value


def describe(value: object) -> str:
    """A value for a message, with what kind of thing it is where that is the problem."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text '{_short(value)}'" if value else "an empty text"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return _short(str(value))


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]}..."
