"""Kinds of values in cost-model and cluster files: how each is checked, and what a JSON Schema says of it.

The keys of a file are a tree of kinds (``hardware.keys``): one description for the reader, which reports
every error of a file at once, and for editors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from autopar.errors import CostModelError
from autopar.hardware.fields import LEAST, MOST, MOST_COUNT, MOST_SIZE, NUMBER_KEYS, TABLE_KEYS, Fields
from autopar.hardware.tables import SizeTable

Schema = dict[str, Any]


class Kind(Protocol):
    """What stands under a key."""

    @property
    def optional(self) -> bool:
        """Whether the key may be absent."""
        ...

    def problems(self, fields: Fields, key: str) -> Iterator[CostModelError]:
        """Everything that is wrong with the value of a key that is there."""
        ...

    def schema(self) -> Schema:
        """The JSON Schema of the value."""
        ...


def _tried(read: Callable[[], object]) -> Iterator[CostModelError]:
    try:
        read()
    except CostModelError as problem:
        yield problem


class _Read:
    """A kind whose value is wrong where reading it fails."""

    __slots__ = ()

    def problems(self, fields: Fields, key: str) -> Iterator[CostModelError]:
        """The first thing that reading complains about."""
        yield from _tried(lambda: self.read(fields, key))

    def read(self, fields: Fields, key: str) -> object:
        """The value; raises a ``CostModelError`` where it is none of this kind."""
        raise NotImplementedError


class _Mapping:
    """A kind that is a mapping."""

    __slots__ = ()

    def problems(self, fields: Fields, key: str) -> Iterator[CostModelError]:
        """No mapping, or everything that is wrong in it."""
        try:
            section = fields.section(key)
        except CostModelError as problem:
            yield problem
            return
        yield from self.inside(section)

    def inside(self, fields: Fields) -> Iterator[CostModelError]:
        """Everything that is wrong in the mapping."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Text(_Read):
    """A text; one of ``words``, if there are any."""

    optional: bool = False
    words: tuple[str, ...] = ()

    def read(self, fields: Fields, key: str) -> str:
        """The text."""
        text = fields.text(key)
        if self.words and text not in self.words:
            words = (
                f"one of {', '.join(self.words)}"
                if len(self.words) > 2
                else " or ".join(f"'{word}'" for word in self.words)
            )
            fields.fail(key, f"{key} '{text}' must be {words}")
        return text

    def schema(self) -> Schema:
        """Of a text."""
        return {"enum": list(self.words)} if self.words else {"type": "string", "minLength": 1}


@dataclass(frozen=True, slots=True)
class Texts(_Read):
    """A list of texts."""

    optional: bool = True

    def read(self, fields: Fields, key: str) -> tuple[str, ...]:
        """The texts."""
        return fields.texts(key)

    def schema(self) -> Schema:
        """Of a list of texts."""
        return {"type": "array", "items": {"type": "string"}}


@dataclass(frozen=True, slots=True)
class Flag(_Read):
    """``true`` or ``false``."""

    optional: bool = True

    def read(self, fields: Fields, key: str) -> bool:
        """Which."""
        return fields.flag(key)

    def schema(self) -> Schema:
        """Of a boolean."""
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Count(_Read):
    """A plain positive integer; of files of one version only, that."""

    optional: bool = False
    only: int | None = None
    of: str = ""

    def read(self, fields: Fields, key: str) -> int:
        """The number."""
        count = fields.count(key)
        if count != self.only is not None:
            fields.fail(
                key, f"this autopar reads version {self.only} of {self.of}; write '{key}: {self.only}'"
            )
        return count

    def schema(self) -> Schema:
        """Of an integer."""
        if self.only is not None:
            return {"const": self.only}
        return {"type": "integer", "minimum": 1, "maximum": MOST_COUNT}


@dataclass(frozen=True, slots=True)
class Number(_Read):
    """``{value: 312, unit: TFLOP/s, source: S1}``; ``nullable``: the value may be null."""

    unit: str
    optional: bool = False
    nullable: bool = False
    cited: bool = True

    def read(self, fields: Fields, key: str) -> float | None:
        """The number in its unit, with a source that the file has."""
        return (fields.optional_number if self.nullable else fields.number)(key, self.unit)

    def schema(self) -> Schema:
        """Of the mapping."""
        value: Schema = {"type": "number", "minimum": LEAST, "maximum": MOST[self.unit]}
        if self.nullable:
            value = {"anyOf": [value, {"type": "null"}]}
        properties = {**_cited(NUMBER_KEYS), "value": value, "unit": {"const": self.unit}}
        # A value that is null needs no source.
        required = ["value", "unit", *(["source"] if self.cited and not self.nullable else [])]
        return _object(properties, required)


@dataclass(frozen=True, slots=True)
class Table(_Read):
    """``{unit: GB/s, size_unit: B, source: S3, points: [[1048576, 19.9], ...]}``."""

    size_unit: str
    unit: str
    optional: bool = False

    def read(self, fields: Fields, key: str) -> SizeTable:
        """Points that ascend, in their units, with a source that the file has."""
        return fields.table(key, self.size_unit, self.unit)

    def schema(self) -> Schema:
        """Of the mapping."""
        size = {"type": "number", "minimum": LEAST, "maximum": MOST_SIZE}
        value = {"type": "number", "minimum": LEAST, "maximum": MOST[self.unit]}
        point = {"type": "array", "items": [size, value], "minItems": 2, "maxItems": 2}
        properties = {
            **_cited(TABLE_KEYS),
            "size_unit": {"const": self.size_unit},
            "unit": {"const": self.unit},
            "points": {"type": "array", "minItems": 1, "items": point},
        }
        return _object(properties, ["size_unit", "unit", "source", "points"])


@dataclass(frozen=True, slots=True)
class Curves(_Read):
    """A list of tables, one for each size of a group, ascending."""

    size_unit: str
    unit: str
    optional: bool = True

    def read(self, fields: Fields, key: str) -> None:
        """Every curve, the groups ascending."""
        before = 1
        for curve in fields.items(key):
            curve.only("group", *TABLE_KEYS)
            group = curve.count("group")
            if group <= before:
                curve.fail("group", f"group {group}: groups are at least 2 and ascend from curve to curve")
            before = group
            curve.own_table(self.size_unit, self.unit)

    def schema(self) -> Schema:
        """Of the list."""
        curve = Table(self.size_unit, self.unit).schema()
        curve["properties"] = {"group": {"type": "integer", "minimum": 2}, **curve["properties"]}
        curve["required"] = ["group", *curve["required"]]
        return {"type": "array", "items": curve}


@dataclass(frozen=True, slots=True)
class Section(_Mapping):
    """A mapping of known keys."""

    keys: Mapping[str, Kind]
    optional: bool = False

    def inside(self, fields: Fields) -> Iterator[CostModelError]:
        """Unknown keys, missing ones, and what is wrong with the others."""
        unknown = list(fields.unknown(self.keys))
        yield from unknown
        for key, kind in self.keys.items():
            if key in fields.values:
                yield from kind.problems(fields, key)
            elif not kind.optional and not any(f"mean '{key}'?" in str(problem) for problem in unknown):
                yield from _tried(lambda key=key: fields.required(key))  # type: ignore[misc]

    def schema(self) -> Schema:
        """Of the mapping."""
        properties = {key: kind.schema() for key, kind in self.keys.items()}
        return _object(properties, [key for key, kind in self.keys.items() if not kind.optional])


@dataclass(frozen=True, slots=True)
class Named(_Mapping):
    """A mapping from names that the file chooses."""

    kind: Kind
    optional: bool = False

    def inside(self, fields: Fields) -> Iterator[CostModelError]:
        """What is wrong with the value of any name."""
        for name in fields.values:
            yield from self.kind.problems(fields, name)

    def schema(self) -> Schema:
        """Of the mapping."""
        return {"type": "object", "additionalProperties": self.kind.schema()}


def _object(properties: Schema, required: list[str]) -> Schema:
    found: Schema = {"type": "object", "additionalProperties": False, "properties": properties}
    return {**found, "required": required} if required else found


def _cited(keys: tuple[str, ...]) -> Schema:
    """Schemas of the keys that say where a number comes from, in the order of ``keys``."""
    one = {"type": "string", "minLength": 1}
    known: Schema = {
        "source": {"anyOf": [one, {"type": "array", "items": {"type": "string"}, "minItems": 1}]},
        "conf": {
            "type": "string",
            "minLength": 1,
            "description": "A: primary source, B: secondary, C: derived or estimated",
        },
        "note": {"type": "string", "minLength": 1},
    }
    return {key: known.get(key, {}) for key in keys}
