"""Strict reading of a mapping's fields: every key known, every number in its expected unit, or an error."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from autopar.errors import CostModelError, closest_match
from autopar.hardware.tables import SizeTable
from autopar.hardware.yaml_lines import Place

_SCALES = {
    "TFLOP/s": 1e12,
    "GB/s": 1e9,
    "Gbit/s": 1e9 / 8,
    "GiB": float(2**30),
    "us": 1e-6,
    "fraction": 1.0,
    "times": 1.0,
    "devices": 1.0,
    "elements": 1.0,
}

MOST = {
    "TFLOP/s": 1e9,
    "GB/s": 1e9,
    "Gbit/s": 1e9,
    "GiB": 1e9,
    "us": 1e9,
    "fraction": 1.0,
    "times": 1e6,
    "devices": 1e6,
    "elements": 1e9,
}
"""Beyond these a number is a slip of the finger or in another unit."""
LEAST = 1e-9
MOST_SIZE = 1e18
MOST_COUNT = 1_000_000

_MOST_UNKNOWN = 20  # told of in a section: a file with more is another kind of file
NUMBER_KEYS = ("value", "unit", "source", "conf", "note")
TABLE_KEYS = ("size_unit", "unit", "source", "conf", "note", "points")


@dataclass(frozen=True, slots=True)
class Fields:
    """A mapping of a file, with what is needed to say where it is wrong.

    Attributes:
        path: the file.
        key: dotted key of this mapping.
        values: its content.
        places: of the whole file.
        sources: ids of the file's citations; None where the file need not cite (a cluster file).
    """

    path: str
    key: str
    values: Mapping[str, Any]
    places: Mapping[str, Place]
    sources: frozenset[str] | None

    @classmethod
    def of(
        cls,
        path: str,
        document: Any,
        places: Mapping[str, Place],
        sources: frozenset[str] | None,
        key: str = "",
    ) -> Fields:
        """The fields of a mapping, or an error where it is something else."""
        if not isinstance(document, dict):
            where = f"'{key}'" if key else "the file"
            message = f"{where} must be a mapping of keys to values, not {_kind(document)}"
            line, column = places.get(key, Place(1, 1))
            raise CostModelError(message, path=path, line=line, column=column, key=key)
        return cls(path, key, document, places, sources)

    def unknown(self, known: Collection[str]) -> Iterator[CostModelError]:
        """An error for every key other than ``known``."""
        unknown = [key for key in self.values if key not in known]
        for key in unknown[:_MOST_UNKNOWN]:
            where = f" in '{self.key}'" if self.key else ""
            yield self.problem(
                key, f"unknown key '{key}'{where}{closest_match(key, known)} (known: {', '.join(known)})"
            )

    def only(self, *known: str) -> None:
        """Refuses keys other than ``known``."""
        for problem in self.unknown(known):
            raise problem

    def problem(self, key: str, message: str) -> CostModelError:
        """An error at the place of ``key`` (or of the mapping, where the key is absent)."""
        dotted = self._dotted(key)
        line, column = self.places.get(dotted) or self.places.get(self.key) or Place(1, 1)
        return CostModelError(message, path=self.path, line=line, column=column, key=dotted)

    def fail(self, key: str, message: str) -> NoReturn:
        """Raises the error of ``problem``."""
        raise self.problem(key, message)

    def section(self, key: str, required: bool = True) -> Fields:
        """The mapping under ``key``; an empty one where it may be absent and is."""
        if key not in self.values:
            if required:
                self._missing(key)
            return Fields(self.path, self._dotted(key), {}, self.places, self.sources)
        return Fields.of(self.path, self.values[key], self.places, self.sources, self._dotted(key))

    def items(self, key: str) -> tuple[Fields, ...]:
        """The mappings of a list; empty where absent."""
        given = self.values.get(key, [])
        dotted = self._dotted(key)
        if not isinstance(given, list):
            self.fail(key, f"'{dotted}' must be a list of mappings, not {_kind(given)}")
        return tuple(
            Fields.of(self.path, item, self.places, self.sources, f"{dotted}.{i}")
            for i, item in enumerate(given)
        )

    def text(self, key: str) -> str:
        """A text."""
        value = self.required(key)
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
        value = self.required(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.fail(key, f"'{self._dotted(key)}' must be a positive integer, not {_kind(value)}")
        if value > MOST_COUNT:
            self.fail(key, f"'{self._dotted(key)}' is {value}; no more than {MOST_COUNT} are counted here")
        return int(value)

    def number(self, key: str, unit: str) -> float:
        """A number with its unit, ``{value: 312, unit: TFLOP/s, source: S1}``, in base units (FLOP/s, B/s, B,
        s).

        Plain positive; where the file cites sources, each number names at least one of them.
        """
        entry = self.section(key)
        entry.only(*NUMBER_KEYS)
        entry._check_unit(unit)
        entry._check_source()
        return self._positive(entry, "value", entry.required("value"), unit)

    def optional_number(self, key: str, unit: str) -> float | None:
        """As ``number``; None where the key is absent or its value is null (not supported by the device)."""
        if key not in self.values:
            return None
        entry = self.section(key)
        if "value" in entry.values and entry.values["value"] is None:
            entry.only(*NUMBER_KEYS)
            entry._check_unit(unit)
            entry.check_remarks()
            return None
        return self.number(key, unit)

    def table(self, key: str, size_unit: str, unit: str) -> SizeTable:
        """Points by size: ``{unit: GB/s, size_unit: B, source: S3, points: [[1048576, 19.9], ...]}``."""
        entry = self.section(key)
        entry.only(*TABLE_KEYS)
        return entry.own_table(size_unit, unit)

    def own_table(self, size_unit: str, unit: str) -> SizeTable:
        """The table that this mapping itself is."""
        self._check_unit(unit)
        if self.text("size_unit") != size_unit:
            self.fail("size_unit", f"size_unit '{self.values['size_unit']}' must be '{size_unit}'")
        self._check_source()
        points: list[tuple[float, float]] = []
        raw = self.required("points")
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
            hint = "; YAML wants a point and a sign in it: 1.0e+9" if _is_short_exponent(value) else ""
            entry.fail(key, f"'{entry._dotted(key)}' must be a number, not {_kind(value)}{hint}")
        if not value > 0:  # also of a NaN
            entry.fail(key, f"'{entry._dotted(key)}' is {value}; it must be positive")
        if unit == "fraction" and value > 1:
            entry.fail(key, f"'{entry._dotted(key)}' is {value}; a fraction is at most 1")
        most = MOST[unit] if unit else MOST_SIZE
        if not LEAST <= value <= most:
            what = f"{value} {unit}" if unit else str(value)
            entry.fail(
                key, f"'{entry._dotted(key)}' is {what}, outside {LEAST:g} to {most:g}; check the unit"
            )
        return float(value) * (_SCALES[unit] if unit else 1.0)

    def _check_unit(self, unit: str) -> None:
        given = self.required("unit")
        if given != unit:
            self.fail("unit", f"unit '{given}' of '{self.key}' must be '{unit}'; convert the number")

    def check_remarks(self) -> None:
        """Refuses remarks on a number that are no texts."""
        for key in ("conf", "note"):
            if key in self.values:
                self.text(key)
        if "source" in self.values and not isinstance(self.values["source"], list):
            self.text("source")
        elif "source" in self.values and not self.texts("source"):
            self.fail("source", f"'{self._dotted('source')}' is empty; name a source, or delete it")

    def _check_source(self) -> None:
        """Where a number comes from: one or several of the file's sources, where the file has any."""
        self.check_remarks()
        if self.sources is None:
            return
        named = (
            self.texts("source") if isinstance(self.values.get("source"), list) else (self.text("source"),)
        )
        for name in named:
            if name not in self.sources:
                hint = closest_match(name, sorted(self.sources))
                self.fail("source", f"source '{name}' of '{self.key}' is not among the file's sources{hint}")

    def required(self, key: str) -> Any:
        """The value of a key that must be there."""
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
    return names.get(type(value), str(value))


def _is_short_exponent(value: Any) -> bool:
    """Whether a text is a number to people, as ``1e9``, which YAML 1.1 takes for a text."""
    return isinstance(value, str) and re.fullmatch(r"[+-]?[0-9.]+[eE][+-]?[0-9]+", value.strip()) is not None
