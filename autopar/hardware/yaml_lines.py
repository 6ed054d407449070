"""Plain YAML with the place of every key: what plan, cluster and cost-model files are read through.

Only the JSON-like part of YAML 1.1 (PyYAML's reading of it) is accepted: mappings, lists, text, decimal
numbers, booleans, null. Anchors, aliases, tags, directives, merge keys and several documents in a file are
refused: a file whose meaning is spread over itself cannot be edited line by line. Keys are text as written,
so that a module called ``0`` can be named.

A file may come from anywhere: its size, its depth and the number of its values are limited, nothing in it is
ever constructed but plain data, and whatever is wrong with it is an error of the caller's class.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from autopar.errors import FileError

MAX_FILE_BYTES = 2**20
"""Far more than a plan for a model of a thousand blocks needs."""
MAX_VALUES = 50_000
MAX_DEPTH = 32
MAX_KEY_LENGTH = 500

_TAG = "tag:yaml.org,2002:"
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_Error = TypeVar("_Error", bound=FileError)


class Place(NamedTuple):
    """Where something stands in a file; both count from 1."""

    line: int
    column: int


def read_yaml(
    path: str | Path, error: type[_Error], problems: list[_Error] | None = None
) -> tuple[Any, dict[str, Place]]:
    """Reads a plain YAML file.

    Args:
        path: the file.
        error: class of what is raised, e.g. ``PlanError``; its message starts with ``path:line:column: ``.
        problems: takes what is wrong but does not keep the rest from being read; None: that is raised.

    Returns:
        The document, and the place of every dotted key: ``mesh.tensor`` for a mapping's key,
        ``pipeline.stages.1`` for a list's item, ``""`` for the document itself. An empty file is ``None``.

    Raises:
        FileError: (as ``error``) the file cannot be read, is too large, is not UTF-8, is not YAML, says a key
            twice, or uses more than plain YAML.
    """
    return parse_yaml(read_bytes(path, error), str(path), error, problems)


def read_bytes(path: str | Path, error: type[_Error]) -> bytes:
    """What a file holds, if it is no larger than such files are.

    Raises:
        FileError: (as ``error``) it cannot be read, or it is too large.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or type(problem).__name__
        raise error(f"cannot read the file: {reason}; check the path", path=str(path)) from problem
    _check_size(data, str(path), error)
    return data


def _check_size(data: bytes | str, name: str, error: type[_Error]) -> None:
    if len(data) > MAX_FILE_BYTES:
        raise error(
            f"the file is larger than {MAX_FILE_BYTES >> 20} MiB, far more than such a file needs; check the "
            "path",
            path=name,
        )


def parse_yaml(
    data: bytes | str, name: str, error: type[_Error], problems: list[_Error] | None = None
) -> tuple[Any, dict[str, Place]]:
    """As ``read_yaml``, of text in memory; ``name`` stands for the file in messages."""
    _check_size(data, name, error)
    text = data if isinstance(data, str) else _decode(data, name, error)
    _check_characters(text, name, error)
    reader = _Reader(name, error)
    try:
        document = reader.document(yaml.parse(text, Loader=_PARSER))
    except yaml.MarkedYAMLError as problem:
        mark, remedy = _place_and_remedy(problem, text)
        line, column = (mark.line + 1, mark.column + 1) if mark else (None, None)
        message = f"not valid YAML: {problem.problem or problem.context}; {remedy}"
        refused = error(message, path=name, line=line, column=column)
        raise error.of([*reader.problems, refused]) from problem
    except yaml.YAMLError as problem:
        raise error(f"not valid YAML: {problem}; save the file as plain text", path=name) from problem
    if problems is not None:
        problems += reader.problems
    elif reader.problems:
        raise error.of(reader.problems)
    return document, reader.places


def _place_and_remedy(problem: yaml.MarkedYAMLError, text: str) -> tuple[yaml.Mark | None, str]:
    """Where a person has to look, and what for."""
    if problem.problem == "could not find expected ':'" and problem.context_mark:
        return problem.context_mark, "write 'key: value', with a blank after the colon"
    mark = problem.problem_mark or problem.context_mark
    line = _line(text, mark.line) if mark else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return mark, "the line is indented with a tab; write spaces"
    if line.lstrip().startswith("*"):
        return mark, 'a name that begins with * stands in quotes: "*"'
    return mark, "check indentation, quotes and brackets here"


def _line(text: str, number: int) -> str:
    lines = text.split("\n", number + 1)
    return lines[number] if number < len(lines) else ""


def _decode(data: bytes, name: str, error: type[_Error]) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        before = data[: problem.start].decode("utf-8-sig")
        message = f"byte 0x{data[problem.start]:02x} is not UTF-8; save the file as UTF-8 text"
        raise error(message, path=name, **_place_after(before)._asdict()) from problem


def _check_characters(text: str, name: str, error: type[_Error]) -> None:
    found = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if found is not None:
        message = f"not valid YAML: the character U+{ord(found[0]):04X} is not allowed; delete it"
        raise error(message, path=name, **_place_after(text[: found.start()])._asdict())


def _place_after(text: str) -> Place:
    return Place(text.count("\n") + 1, len(text) - text.rfind("\n"))


class _Reader:
    """Turns the parser's events into plain data and remembers the place of every key."""

    def __init__(self, name: str, error: type[_Error]) -> None:
        self.places: dict[str, Place] = {}
        self.problems: list[Any] = []
        self._name = name
        self._error: Any = error
        self._scalars: Any = yaml.SafeLoader("")
        self._num_values = 0

    def document(self, events: Iterator[yaml.Event]) -> Any:
        """The document of a stream; None where there is none."""
        document, num_documents = None, 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                num_documents += 1
                if event.version or event.tags:
                    self._report(event, "directives (%) are not read here; delete the line")
                if num_documents > 1:
                    self._report(event, "a second document starts; keep one document in a file")
                    return document
            elif isinstance(event, yaml.NodeEvent):
                document = self._value(events, event, "", 0)
        return document

    def _report(self, at: yaml.Event, message: str, key: str = "") -> None:
        self.problems.append(self._failure(at, message, key))

    def _failure(self, at: yaml.Event, message: str, key: str = "") -> FileError:
        place = _place(at)
        failure: FileError = self._error(
            message, path=self._name, line=place.line, column=place.column, key=key
        )
        return failure

    def _value(self, events: Iterator[yaml.Event], event: Any, key: str, depth: int) -> Any:
        """The plain data of the node that an event begins, whose own dotted key is ``key``."""
        self._num_values += 1
        if self._num_values > MAX_VALUES:
            raise self._failure(
                event, f"the file has more than {MAX_VALUES} values; check that it is the one"
            )
        if depth > MAX_DEPTH or len(key) > MAX_KEY_LENGTH:
            what = "nested too deeply" if depth > MAX_DEPTH else "the names down to here are too long"
            raise self._failure(event, f"not valid YAML here: {what}; flatten the file")
        self.places.setdefault(key, _place(event))
        if isinstance(event, yaml.AliasEvent):
            self._refuse(event, "aliases (*name)", key)
            return None
        if event.anchor is not None:
            self._refuse(event, "anchors (&name)", key)
        value = self._plain(events, event, key, depth)
        if event.tag is not None:
            self._refuse(event, "tags (!name)", key)
            return None  # whatever it should become: only that it is refused is told
        return value

    def _plain(self, events: Iterator[yaml.Event], event: Any, key: str, depth: int) -> Any:
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(events, key, depth)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(item := next(events), yaml.SequenceEndEvent):
                items.append(self._value(events, item, _dotted(key, str(len(items))), depth + 1))
            return items
        return self._scalar(event, key)

    def _refuse(self, event: yaml.Event, what: str, key: str) -> None:
        self._report(event, f"{what} are not read here; write the value out, or quote the text", key)

    def _scalar(self, event: Any, key: str) -> Any:
        text: str = event.value
        tag = self._scalars.resolve(yaml.ScalarNode, text, event.implicit).removeprefix(_TAG)
        if tag not in ("int", "float", "bool", "null"):
            return text
        is_decimal = ":" not in text and (tag != "int" or _DECIMAL.fullmatch(text))
        if tag in ("int", "float") and not is_decimal:
            self._report(
                event,
                f"YAML takes '{text}' for a number of another base; write it in decimal, or quote the text",
                key,
            )
            return None
        try:
            return self._scalars.construct_object(yaml.ScalarNode(_TAG + tag, text))
        except (ValueError, KeyError):
            self._report(event, f"'{_short(text)}' is not a number; quote it if it is text", key)
            return None

    def _mapping(self, events: Iterator[yaml.Event], key: str, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            name = self._key(events, event, result, key, depth)
            value = self._value(events, next(events), _dotted(key, name or ""), depth + 1)
            if name is not None:
                result[name] = value
        return result

    def _key(
        self, events: Iterator[yaml.Event], event: yaml.Event, known: dict[str, Any], key: str, depth: int
    ) -> str | None:
        """The name that an event says; None, and a problem noted, where it is none of a key of its own."""
        if not isinstance(event, yaml.ScalarEvent):
            self._report(event, "a key is a list or a mapping; write a name before the colon", key)
            if not isinstance(event, yaml.AliasEvent):
                self._value(events, event, key, depth + 1)
            return None
        name: str = event.value
        dotted = _dotted(key, name)
        if event.anchor is not None or event.tag is not None:
            self._refuse(event, "anchors (&name) and tags (!name)", dotted)
        if self._scalars.resolve(yaml.ScalarNode, name, event.implicit) == f"{_TAG}merge":
            self._report(event, "merge keys (<<) are not read here; write the values out", dotted)
            return None
        if name in known:
            first = self.places[dotted].line
            self._report(event, f"'{_short(name)}' is said twice (first at line {first}); delete one", dotted)
            return None
        self.places[dotted] = _place(event)
        return name


def _place(event: Any) -> Place:
    return Place(event.start_mark.line + 1, event.start_mark.column + 1)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:40]}..."


def _dotted(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
