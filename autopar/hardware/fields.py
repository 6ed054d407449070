"""Strict reading of a mapping's fields: every key known, every number in its expected unit, or an error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autopar.errors import CostModelError, closest_match
from autopar.hardware.tables import SizeTable

_SCALES = {
    "TFLOP/s": 1e12,
    "GB/s": 1e9,
    "Gbit/s": 1e9 / 8,
    "GiB": float(2**30),
    "us": 1e-6,
    "fraction": 1.0,
    "devices": 1.0,
    "elements": 1.0,
}

_NUMBER_KEYS = {"value", "unit", "source", "conf", "note"}


@dataclass(frozen=True, slots=True)
class Fields:
    """A mapping of a file, with what is needed to say where it is wrong.

    Attributes:
        path: the file.
        key: dotted key of this mapping.
        values: its content.
        lines: of the whole file.
        sources: ids of the file's citations; None where the file need not cite (a cluster file).
    """

    path: str
    key: str
    values: Mapping[str, Any]
    lines: Mapping[str, int]
    sources: frozenset[str] | None

    @classmethod
    def of(
        cls, path: str, document: Any, lines: Mapping[str, int], sources: frozenset[str] | None, key: str = ""
    ) -> Fields:
        """The fields of a mapping, or an error where it is something else."""
        if not isinstance(document, dict):
            where = f"'{key}'" if key else "the file"
            message = f"{where} must be a mapping of keys to values, not {_kind(document)}"
            raise CostModelError(message, path=path, line=lines.get(key, 1))
        return cls(path, key, document, lines, sources)

    def only(self, *known: str) -> None:
        """Refuses keys other than ``known``."""
        for key in self.values:
            if key not in known:
                where = f" in '{self.key}'" if self.key else ""
                self.fail(
                    key, f"unknown key '{key}'{where}{closest_match(key, known)} (known: {', '.join(known)})"
                )

    def fail(self, key: str, message: str) -> None:
        """Raises a CostModelError at the line of ``key`` (or of the mapping, where the key is absent)."""
        line = self.lines.get(self._dotted(key), self.lines.get(self.key, 1))
        raise CostModelError(message, path=self.path, line=line)

    def section(self, key: str, required: bool = True) -> Fields:
        """The mapping under ``key``; an empty one where it may be absent and is."""
        if key not in self.values:
            if required:
                self._missing(key)
            return Fields(self.path, self._dotted(key), {}, self.lines, self.sources)
        return Fields.of(self.path, self.values[key], self.lines, self.sources, self._dotted(key))

    def text(self, key: str) -> str:
        """A text."""
        value = self._required(key)
        if not isinstance(value, str) or not value:
            self.fail(key, f"'{self._dotted(key)}' must be text, not {_kind(value)}")
        return str(value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; empty where absent."""
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.fail(key, f"'{self._dotted(key)}' must be a list of texts, not {_kind(value)}")
        return tuple(value)

    def flag(self, key: str) -> bool:
        """A boolean; false where absent."""
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            self.fail(key, f"'{self._dotted(key)}' must be true or false, not {_kind(value)}")
        return bool(value)

    def count(self, key: str) -> int:
        """A plain positive integer."""
        value = self._required(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.fail(key, f"'{self._dotted(key)}' must be a positive integer, not {_kind(value)}")
        return int(value)

    def number(self, key: str, unit: str) -> float:
        """A number with its unit, ``{value: 312, unit: TFLOP/s, source: S1}``, in base units (FLOP/s, B/s, B,
        s).

        Plain positive; where the file cites sources, each number names at least one of them.
        """
        entry = self.section(key)
        entry.only(*sorted(_NUMBER_KEYS))
        entry._check_unit(unit)
        entry._check_source()
        return self._positive(entry, "value", entry._required("value"), unit)

    def optional_number(self, key: str, unit: str) -> float | None:
        """As ``number``; None where the key is absent or its value is null (not supported by the device)."""
        if key not in self.values:
            return None
        entry = self.section(key)
        if "value" in entry.values and entry.values["value"] is None:
            entry.only(*sorted(_NUMBER_KEYS))
            entry._check_unit(unit)
            return None
        return self.number(key, unit)

    def table(self, key: str, size_unit: str, unit: str) -> SizeTable:
        """Points by size: ``{unit: GB/s, size_unit: B, source: S3, points: [[1048576, 19.9], ...]}``."""
        entry = self.section(key)
        entry.only("size_unit", "unit", "source", "conf", "note", "points")
        return entry.own_table(size_unit, unit)

    def own_table(self, size_unit: str, unit: str) -> SizeTable:
        """The table that this mapping itself is."""
        self._check_unit(unit)
        if self.text("size_unit") != size_unit:
            self.fail("size_unit", f"size_unit '{self.values['size_unit']}' must be '{size_unit}'")
        self._check_source()
        points: list[tuple[float, float]] = []
        raw = self._required("points")
        if not isinstance(raw, list) or not raw:
            self.fail(
                "points", f"'{self._dotted('points')}' must be a list of [size, value], not {_kind(raw)}"
            )
        for i, point in enumerate(raw):
            item = f"points.{i}"
            if not isinstance(point, list) or len(point) != 2:
                self.fail(item, f"'{self._dotted(item)}' must be [size, value], not {_kind(point)}")
            size, value = (
                self._positive(self, item, number, u) for number, u in zip(point, (None, unit), strict=True)
            )
            if points and size <= points[-1][0]:
                self.fail(item, f"sizes must ascend, but {size:g} follows {points[-1][0]:g}")
            points.append((size, value))
        return SizeTable(tuple(points))

    def _positive(self, entry: Fields, key: str, value: Any, unit: str | None) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            entry.fail(key, f"'{entry._dotted(key)}' must be a number, not {_kind(value)}")
        if not (math.isfinite(value) and value > 0):
            entry.fail(key, f"'{entry._dotted(key)}' is {value:g}; it must be positive")
        if unit == "fraction" and value > 1:
            entry.fail(key, f"'{entry._dotted(key)}' is {value:g}; a fraction is at most 1")
        return float(value) * (_SCALES[unit] if unit else 1.0)

    def _check_unit(self, unit: str) -> None:
        given = self._required("unit")
        if given != unit:
            self.fail("unit", f"unit '{given}' of '{self.key}' must be '{unit}'; convert the number")

    def _check_source(self) -> None:
        if self.sources is None:
            return
        named = (
            self.texts("source") if isinstance(self.values.get("source"), list) else (self.text("source"),)
        )
        for name in named:
            if name not in self.sources:
                hint = closest_match(name, sorted(self.sources))
                self.fail("source", f"source '{name}' of '{self.key}' is not among the file's sources{hint}")

    def _required(self, key: str) -> Any:
        if key not in self.values:
            self._missing(key)
        return self.values[key]

    def _missing(self, key: str) -> None:
        self.fail(key, f"'{self._dotted(key)}' is missing; add it")

    def _dotted(self, key: str) -> str:
        return f"{self.key}.{key}" if self.key else key


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    names = {dict: "a mapping", list: "a list", bool: f"{str(value).lower()}", str: f"the text '{value}'"}
    return names.get(type(value), f"{value!r}")
