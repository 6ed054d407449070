"""Plain YAML with the line of every key: what plan, cluster and cost-model files are read through.

Only the JSON-like part of YAML 1.1 (PyYAML's reading of it) is accepted: mappings, lists, text, numbers,
booleans, null. Anchors, aliases, tags, directives, merge keys and several documents in a file are refused: a
file whose meaning is spread over itself cannot be edited line by line. Keys are text as written, so that a
module called ``0`` can be named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from autopar.errors import FileError

_SCALARS = {f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null")}

_REFUSED: dict[type[yaml.Token], str] = {
    yaml.AnchorToken: "anchors (&name)",
    yaml.AliasToken: "aliases (*name)",
    yaml.TagToken: "tags (!name)",
    yaml.DirectiveToken: "directives (%)",
}


def load_with_lines(path: str | Path, error: type[FileError] = FileError) -> tuple[Any, dict[str, int]]:
    """Reads a plain YAML file.

    Args:
        path: the file.
        error: class of what is raised, e.g. ``PlanError``; its message starts with ``path:line: ``.

    Returns:
        The document, and the line (from 1) of every dotted key: ``mesh.tensor`` for a mapping's key,
        ``pipeline.stages.1`` for a list's item, ``""`` for the document itself. An empty file is ``None``.

    Raises:
        FileError: (as ``error``) the file cannot be read, is not UTF-8, is not YAML, says a key twice, or
            uses more than plain YAML.
    """
    name = str(path)
    try:
        data = Path(path).read_bytes()
    except OSError as problem:
        reason = problem.strerror or type(problem).__name__
        raise error(f"cannot read the file: {reason}; check the path", path=name) from problem
    return parse_with_lines(data, name, error)


def parse_with_lines(
    data: bytes | str, name: str, error: type[FileError] = FileError
) -> tuple[Any, dict[str, int]]:
    """As ``load_with_lines``, of text in memory; ``name`` stands for the file in messages."""
    text = data if isinstance(data, str) else _decode(data, name, error)
    reader = _Reader(name, error)
    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if type(token) in _REFUSED:
                what = _REFUSED[type(token)]
                reader.fail(token, f"{what} are not read here; write the value out, or quote the text")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        document = None if node is None else reader.value(node, "")
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        reason = problem.problem or problem.context
        if problem.context and "single document" in problem.context:
            reason = "a second document starts; keep one document in a file"
        message = f"not valid YAML: {reason}; check indentation, quotes and brackets here"
        raise error(message, path=name, line=mark.line + 1 if mark else None) from problem
    except yaml.reader.ReaderError as problem:
        line = text.count("\n", 0, problem.position) + 1
        message = f"not valid YAML: {problem.reason}; delete the character"
        raise error(message, path=name, line=line) from problem
    except RecursionError as problem:
        raise error("not valid YAML: nested too deeply; flatten the file", path=name) from problem
    return document, reader.lines


def _decode(data: bytes, name: str, error: type[FileError]) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        message = f"byte 0x{data[problem.start]:02x} is not UTF-8; save the file as UTF-8 text"
        raise error(message, path=name, line=line) from problem


class _Reader:
    """Turns composed nodes into plain data and remembers the line of every key."""

    def __init__(self, name: str, error: type[FileError]) -> None:
        self.lines: dict[str, int] = {}
        self._name = name
        self._error = error
        self._scalars = yaml.SafeLoader("")

    def fail(self, at: yaml.Node | yaml.Token, message: str) -> None:
        """Raises the caller's error at the line of a node or token."""
        raise self._error(message, path=self._name, line=at.start_mark.line + 1)

    def value(self, node: yaml.Node, key: str) -> Any:
        """The plain data of ``node``, whose own dotted key is ``key``."""
        self.lines.setdefault(key, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, _dotted(key, str(i))) for i, item in enumerate(node.value)]
        if node.tag in _SCALARS:
            try:
                return self._scalars.construct_object(node)
            except (ValueError, KeyError):
                self.fail(node, f"'{node.value}' is not a number; quote it if it is text")
        return node.value

    def _mapping(self, node: yaml.MappingNode, key: str) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.fail(key_node, "a key is a list or a mapping; write a name before the colon")
            name = str(key_node.value)
            if key_node.tag == "tag:yaml.org,2002:merge":
                self.fail(key_node, "merge keys (<<) are not read here; write the values out")
            dotted = _dotted(key, name)
            if name in result:
                self.fail(
                    key_node, f"'{name}' is said twice (first at line {self.lines[dotted]}); delete one"
                )
            self.lines[dotted] = key_node.start_mark.line + 1
            result[name] = self.value(value_node, dotted)
        return result


def _dotted(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
