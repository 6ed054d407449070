"""Writes docs/reference/ from the code: the command line, the files, the Python API, the errors.

    python docs/write_reference.py

A test holds the pages that are committed to what this writes.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import autopar
from autopar import errors
from autopar.cli.main import VERBS, build_parser
from autopar.plan.composed_kinds import Section
from autopar.plan.keys import PLAN
from autopar.plan.schema import json_schema

FOLDER = Path(__file__).parent / "reference"
_HEAD = "<!-- Written by docs/write_reference.py: edit the code, not this page. -->\n"
_GOOGLE_SECTION = re.compile(r"^(Args|Returns|Raises|Attributes|Yields):$")


def pages() -> dict[str, str]:
    """Every page by its file name."""
    written = {
        "command-line.md": _command_line(),
        "plan-file.md": _plan_file(),
        "cluster-file.md": _hardware_file("cluster", "The cluster file"),
        "cost-model-file.md": _hardware_file("cost-model", "The cost-model file"),
        "python-api.md": _python_api(),
        "errors.md": _errors(),
    }
    return {name: f"{_HEAD}\n{text.rstrip()}\n" for name, text in written.items()}


def _command_line() -> str:
    parser = build_parser()
    (verbs,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    summaries = {action.dest: action.help for action in verbs._choices_actions}
    parts = [f"# The command line\n\n{parser.description}\n"]
    parts += [f"- [`autopar {name}`](#{name}): {summaries[name]}" for name in VERBS]
    parts += ["", f"{str(parser.epilog).strip()}.\n"]
    for name in VERBS:
        parts += [f"## {name}\n", _verb(name, verbs.choices[name])]
    return "\n".join(parts)


def _verb(name: str, parser: argparse.ArgumentParser) -> str:
    actions = [action for action in parser._actions if action.dest != "help"]
    positional = [
        f"[{action.metavar}]" if action.nargs == "?" else str(action.metavar)
        for action in actions
        if not action.option_strings
    ]
    usage = " ".join(["autopar", name, *positional, "[options]"])
    parts = [f"```text\n{usage}\n```\n", _markdown(str(parser.description).strip()), ""]
    for group in parser._action_groups:
        shown = [action for action in group._group_actions if action.dest != "help"]
        if shown:
            parts += [f"**{group.title}**\n", *map(_flag, shown), ""]
    return "\n".join(parts)


def _flag(action: argparse.Action) -> str:
    metavar = str(action.metavar or "")
    if action.choices and not metavar:
        metavar = "{" + ",".join(map(str, action.choices)) + "}"
    if not metavar and action.nargs != 0:
        metavar = action.dest.upper()
    names = [f"{name} {metavar}".strip() for name in action.option_strings] or [metavar]
    return f"- {', '.join(f'`{name}`' for name in names)}: {action.help}"


def _plan_file() -> str:
    keys = json_schema("plan")["properties"]
    parts = [
        "# The plan file\n",
        "Every key may be absent: what a file does not say is the solver's to choose. A file in which",
        "nothing is open is complete. Unknown keys are errors.\n",
    ]
    for name, key in PLAN.keys.items():
        parts += [f"## {name}\n", f"{_sentence(key.about)}\n"]
        if isinstance(key.kind, Section):
            for below, inner in key.kind.keys.items():
                allowed = _values(keys[name]["properties"][below])
                parts.append(f"- `{name}.{below}`: {inner.about or 'see above'}. Values: {allowed}.")
            parts.append("")
        elif name != "predicted":
            parts.append(f"Values: {_values(keys[name])}.\n")
    return "\n".join(parts)


def _hardware_file(kind: str, title: str) -> str:
    parts = [
        f"# {title}\n",
        f"`autopar schema {kind}` prints the same for editors. Unknown keys are errors.\n",
    ]
    schema = json_schema(kind)
    parts += _schema_lines(schema, "")
    return "\n".join(parts)


def _schema_lines(schema: Mapping[str, Any], prefix: str) -> Iterator[str]:
    required = schema.get("required", ())
    for name, inner in schema["properties"].items():
        needed = "" if name in required else " (may be absent)"
        is_section = "properties" in inner and "value" not in inner["properties"]
        if is_section and "points" not in inner["properties"]:
            yield f"- `{prefix}{name}`{needed}:"
            yield from _schema_lines(inner, f"{prefix}{name}.")
        else:
            yield f"- `{prefix}{name}`{needed}: {_values(inner)}"


def _values(schema: Mapping[str, Any]) -> str:
    """What a JSON Schema allows, in words."""
    if "$ref" in schema:
        return "see the schema"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{word}`" for word in schema["enum"])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            first, *others = schema[key]
            if first.get("additionalProperties") in others:
                return f"one for all names, or a table by pattern; each {_values(others[0])}"
            return ", or ".join(dict.fromkeys(_values(one) for one in schema[key]))
    kind = schema.get("type")
    if isinstance(kind, list):
        return " or ".join(_values({**schema, "type": one}) for one in kind)
    if kind in ("integer", "number"):
        return _number(schema, kind)
    if kind == "boolean":
        return "`true` or `false`"
    if kind == "array":
        items = schema.get("items")
        return f"a list of: {_values(items)}" if isinstance(items, dict) and items else "a list"
    if kind == "object":
        return _table(schema)
    if kind == "null":
        return "`null`"
    return _text(schema)


def _text(schema: Mapping[str, Any]) -> str:
    if "shard" in schema.get("pattern", ""):
        return "`shard(d)`"
    if r"\|" in schema.get("pattern", "") and "examples" not in schema:
        return "several of them with `|` between"
    examples = [f"`{example}`" for example in schema.get("examples", ())]
    return f"a text such as {', '.join(examples)}" if examples else "a text"


def _number(schema: Mapping[str, Any], kind: str) -> str:
    what = "a whole number" if kind == "integer" else "a number"
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None and high <= 1e6:
        return f"{what} from {low:,} to {high:,}"
    return f"{what} of at least {low:,}" if low is not None else what


def _table(schema: Mapping[str, Any]) -> str:
    properties = schema.get("properties", {})
    if "value" in properties:
        unit = _values(properties["unit"]) if "unit" in properties else "no unit"
        return f"`{{value: ..., unit: ...}}` in {unit}"
    if "points" in properties:
        return "a table of `points`, pairs of a size and a value"
    inner = schema.get("additionalProperties")
    if isinstance(inner, dict) and inner:
        return f"a table by name; each {_values(inner)}"
    return f"a table with {', '.join(f'`{name}`' for name in properties)}" if properties else "a table"


def _python_api() -> str:
    parts = [
        "# The Python API\n",
        "Everything here is in `import autopar`; whatever else the package holds may change.\n",
    ]
    for name in sorted(set(autopar.__all__) - {"__version__"}, key=str.lower):
        found = getattr(autopar, name)
        parts += [f"## {name}\n", *_object(name, found)]
        if inspect.isclass(found):
            own = [kind for kind in (found, *found.__bases__) if kind.__module__.startswith("autopar.")]
            for method, function in (item for kind in own for item in vars(kind).items()):
                if inspect.isfunction(function) and not method.startswith("_"):
                    parts += [f"### {name}.{method}\n", *_object(method, function)]
    return "\n".join(parts)


def _object(name: str, found: Any) -> list[str]:
    doc = _markdown(inspect.getdoc(found) or "")
    if inspect.isclass(found):
        return [doc, ""]
    signature = inspect.signature(found)
    shown = [_parameter(parameter) for parameter in signature.parameters.values()]
    returns = str(signature.return_annotation).replace("'", "")
    stars = _with_star([*signature.parameters.values()], shown)
    lines = (
        f"{name}(\n" + "".join(f"    {one},\n" for one in stars) + f") -> {returns}"
        if stars
        else f"{name}() -> {returns}"
    )
    return [f"```text\n{lines}\n```\n", doc, ""]


def _parameter(parameter: inspect.Parameter) -> str:
    """As it is written in the code; of an enumeration's member, its value."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(
        parameter.kind, ""
    )
    text = f"{stars}{parameter.name}: {parameter.annotation}"
    if parameter.default is inspect.Parameter.empty:
        return text
    default = parameter.default
    return f"{text} = {(default.value if isinstance(default, Enum) else default)!r}"


def _with_star(parameters: list[inspect.Parameter], shown: list[str]) -> list[str]:
    """The parameters without ``self``, and a star before those that are given by name only."""
    found: list[str] = []
    for parameter, text in zip(parameters, shown, strict=True):
        if parameter.name == "self":
            continue
        by_name = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        if by_name and not any(one.startswith("*") for one in found):
            found.append("*")
        found.append(text)
    return found


def _errors() -> str:
    parts = [
        "# Errors and exit statuses\n",
        "A command ends with one of these statuses; in Python the same errors are exceptions of",
        "`autopar.errors`, each below `AutoparError`. A message says what is wrong, where, with which",
        "values, and what to do.\n",
    ]
    classes = [
        c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.AutoparError)
    ]
    for found in sorted(classes, key=lambda c: (c.exit_status, len(c.__mro__), c.__name__)):
        (parent,) = (base for base in found.__bases__ if base is not ValueError)
        parts.append(f"## {found.__name__}\n")
        if found is not errors.AutoparError:
            parts.append(f"A kind of `{parent.__name__}`. Exit status {found.exit_status}.\n")
        parts += [_markdown(inspect.getdoc(found) or ""), ""]
    return "\n".join([*parts, f"## All statuses\n\n{str(build_parser().epilog).strip()}."])


def _sentence(text: str) -> str:
    is_name = "." in text.split()[0]
    return f"{text if is_name else text[:1].upper() + text[1:]}."


def _markdown(doc: str) -> str:
    """A Google docstring as Markdown: its sections as lists."""
    doc = re.sub(r":\w+:`([^`]+)`", r"`\1`", doc.replace("``", "`"))
    lines: list[str] = []
    in_section = ""
    for line in doc.splitlines():
        heading = _GOOGLE_SECTION.match(line)
        if heading:
            in_section = heading[1]
            lines += [f"**{in_section}**", ""]
        elif in_section and line.startswith("    ") and line[4:5].strip():
            name, colon, rest = line.strip().partition(": ")
            if in_section == "Returns":
                lines.append(line.strip())
            else:
                lines.append(f"- `{name}`: {rest}" if colon else f"- {line.strip()}")
        elif in_section and line.strip():
            lines.append(f"  {line.strip()}")
        else:
            lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Writes every page."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
