"""Kinds of lists and mappings in a plan: how each is read, and what a JSON Schema says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from autopar.plan.bounds import Bound
from autopar.plan.decisions import MESH_AXES, PatternLine
from autopar.plan.entry import Entry, describe
from autopar.plan.kinds import Kind, Schema, Whole, Word

MOST_UNKNOWN = 20
"""Keys that are told to be unknown in a section: a file with more is no plan."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """Names and plain values."""

    def read(self, entry: Entry) -> dict[str, Any]:
        """The values by name."""
        return {name: value.scalar() for name, value in entry.pairs()}

    def schema(self) -> Schema:
        """Of any names."""
        return {
            "type": "object",
            "additionalProperties": {"type": ["number", "string", "boolean", "null"]},
        }


@dataclass(frozen=True, slots=True)
class Order:
    """The axes of the mesh: a list, or one text with commas (``--set mesh.order=data,pipeline,tensor``)."""

    def read(self, entry: Entry) -> tuple[str, str, str]:
        """The axes, slowest first."""
        if isinstance(entry.value, str):
            entry = entry.with_value([word.strip() for word in entry.value.split(",")])
        words = [item.word(MESH_AXES) for item in entry.items()]
        if sorted(words) != sorted(MESH_AXES):
            missing = [axis for axis in MESH_AXES if axis not in words]
            problem = f"leaves out {', '.join(missing)}" if missing else "names an axis twice"
            entry.fail(
                f"'mesh.order' is [{', '.join(words[:6])}], which {problem}; name every axis once, the one "
                f"that varies slowest over the ranks first, e.g. [{', '.join(MESH_AXES)}]"
            )
        return words[0], words[1], words[2]

    def schema(self) -> Schema:
        """Of the list or the text."""
        axes = {"type": "array", "items": {"enum": list(MESH_AXES)}, "minItems": 3, "maxItems": 3}
        return {"anyOf": [{**axes, "uniqueItems": True}, {"type": "string"}]}


@dataclass(frozen=True, slots=True)
class Patterns:
    """Lines from patterns of names to words; one word in place of the mapping holds for every name."""

    kind: Kind
    single: bool = True

    def read(self, entry: Entry) -> tuple[PatternLine, ...]:
        """The lines in the order of the file: the first that matches a name wins."""
        if not isinstance(entry.value, dict) and self.single:
            return (PatternLine("*", self.kind.read(entry), entry.line),)
        lines = []
        for pattern, below in entry.pairs():
            word = below.attempt(partial(self._word, pattern))
            if word is not None:
                lines.append(PatternLine(pattern, word, below.line))
        return tuple(lines)

    def _word(self, pattern: str, entry: Entry) -> str:
        if not pattern.strip() or "" in pattern.split("."):
            section = entry.key.partition(".")[0]
            entry.fail(
                f"'{pattern}' in '{section}' names nothing; write a name such as blocks.*.attn, or \"*\""
            )
        word: str = self.kind.read(entry)
        return word

    def schema(self) -> Schema:
        """Of the mapping, or of one word."""
        word = self.kind.schema()
        lines = {"type": "object", "additionalProperties": word, "propertyNames": {"minLength": 1}}
        return {"anyOf": [lines, word]} if self.single else lines


@dataclass(frozen=True, slots=True)
class Zero:
    """A ZeRO level, a bound on it, or a list with one for each stage."""

    def read(self, entry: Entry) -> int | tuple[int, ...] | Bound:
        """Level, levels or bound."""
        if isinstance(entry.value, list):
            if not entry.value:
                entry.fail("'zero' is an empty list; write one ZeRO level from 0 to 3 for each stage")
            return tuple(item.integer(0, 3) for item in entry.items())
        if isinstance(entry.value, dict):
            entry.fail(
                "'zero' is a mapping; write one ZeRO level from 0 to 3, or a list with one for each stage"
            )
        return Whole(0, 3, bounded=True).read(entry)

    def schema(self) -> Schema:
        """Of the three."""
        level = Whole(0, 3, bounded=True).schema()
        levels = {"type": "array", "items": Whole(0, 3).schema(), "minItems": 1}
        return {"anyOf": [*level["anyOf"], levels]}


@dataclass(frozen=True, slots=True)
class Several:
    """``none``, one of some words, or a list of them."""

    words: tuple[str, ...]

    def read(self, entry: Entry) -> str:
        """The words joined by commas, in the order of ``words``."""
        if not isinstance(entry.value, list):
            return entry.word(self.words, also=", or a list of them")
        words = [item.word(self.words[1:]) for item in entry.items()]
        for position, item in enumerate(entry.items()):
            if words[position] in words[:position]:
                item.fail(f"'{entry.key}' names {describe(words[position])} twice; delete one")
        return ",".join(sorted(words, key=self.words.index)) or self.words[0]

    def schema(self) -> Schema:
        """Of a word or a list."""
        items = {"enum": list(self.words[1:])}
        return {"anyOf": [Word(self.words).schema(), {"type": "array", "items": items, "uniqueItems": True}]}


@dataclass(frozen=True, slots=True)
class Predicted:
    """What was written for people; of it, only the codes of the lines that the planner chose are read."""

    def read(self, entry: Entry) -> tuple[str, ...]:
        """The codes."""
        codes = entry.value.get("chosen") if isinstance(entry.value, dict) else None
        return tuple(codes.split()) if isinstance(codes, str) else ()

    def schema(self) -> Schema:
        """Of anything."""
        return {}


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a section.

    Attributes:
        about: what it decides, in a line.
        example: of a key that must be there.
    """

    kind: Kind
    about: str = ""
    example: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping of known keys."""

    keys: Mapping[str, Key]

    def read(self, entry: Entry) -> dict[str, Any]:
        """The decisions by key; what is absent or wrong is left out."""
        values: dict[str, Any] = {}
        named: dict[str, Entry] = {}
        num_unknown = 0
        for name, below in entry.pairs():
            if name not in self.keys:
                num_unknown += 1
                if num_unknown <= MOST_UNKNOWN:
                    below.unknown_key(name, self.keys)
            elif below.value is not None:
                named[name] = below
        for name, key in self.keys.items():
            if name in named:
                values[name] = named[name].attempt(key.kind.read)
            elif key.example and not entry.is_misspelt(name):
                entry.note(
                    f"'{entry.key}' has no {name}; add e.g. `{name}: {key.example}`, or delete '{entry.key}'"
                )
        return {name: value for name, value in values.items() if value is not None}

    def schema(self) -> Schema:
        """Of the mapping."""
        properties = {
            name: {**({"description": key.about} if key.about else {}), **key.kind.schema()}
            for name, key in self.keys.items()
        }
        required = [name for name, key in self.keys.items() if key.example]
        found: Schema = {"type": ["object", "null"], "additionalProperties": False, "properties": properties}
        return {**found, "required": required} if required else found
