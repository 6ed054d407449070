"""One value of a plan document with its place: answers the reader's questions, or fails at its line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from autopar.errors import PlanError, closest_match
from autopar.hardware.yaml_lines import Place
from autopar.plan.decisions import Scalar


@dataclass(frozen=True, slots=True)
class Entry:
    """A value of the document.

    Attributes:
        value: plain data: mapping, list or scalar.
        key: its dotted key; ``""`` for the document.
        places: of the dotted keys of the whole document.
        path: the file (or the ``--set`` that stands for it), for messages.
    """

    value: Any
    key: str
    places: Mapping[str, Place]
    path: str

    def fail(self, message: str) -> NoReturn:
        """Raises a ``PlanError`` at the line of this value, or of the nearest key around it."""
        key = self.key
        while key and key not in self.places:
            key = key.rpartition(".")[0]
        line, column = self.places.get(key) or (None, None)
        raise PlanError(message, path=self.path, line=line, column=column, key=self.key)

    @property
    def line(self) -> int | None:
        """Of the file."""
        place = self.places.get(self.key)
        return None if place is None else place.line

    def at(self, name: str | int, value: Any) -> Entry:
        """The entry of a key or an item below this one."""
        return Entry(value, f"{self.key}.{name}" if self.key else str(name), self.places, self.path)

    def section(self, known: Iterable[str]) -> dict[str, Entry]:
        """The entries of a mapping whose keys must be ``known``; keys without a value are left out."""
        known = list(known)
        entries = {}
        for name, entry in self.pairs():
            if name not in known:
                where = f"in '{self.key}'" if self.key else "of a plan"
                entry.fail(
                    f"'{name}' is not a key {where}{closest_match(name, known)} (known: {', '.join(known)})"
                )
            if entry.value is not None:
                entries[name] = entry
        return entries

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
            f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
        )
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            self.fail(f"'{self.key}' is {describe(self.value)}; write {allowed}")
        if self.value < low or (high is not None and self.value > high):
            self.fail(f"'{self.key}' is {self.value}; write {allowed}")
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
            self.fail(f"'{self.key}' is '{self.value}'{hint} (allowed: {', '.join(allowed)}{also})")
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
        return value


def describe(value: object) -> str:
    """A value for a message, with what kind of thing it is where that is the problem."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text '{value}'" if value else "an empty text"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return str(value)
