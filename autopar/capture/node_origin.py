"""Where a node of an exported graph comes from: the module and the user's line that computed it."""

from __future__ import annotations

import re
from pathlib import Path

from torch import fx

from autopar.capture.user_code import user_line
from autopar.capture.wrapper import MODULE_PREFIX

# The frame of a watched module's call in a stack trace (see ``sharing``).
_WATCHED_FRAME = re.compile(
    rf'File "{re.escape(str(Path(__file__).with_name("sharing.py")))}", line \d+, in forward\n'
)


def module_of(node: fx.Node) -> str:
    """Qualified name of the user's module; empty outside of it."""
    if "module" in node.meta:
        return str(node.meta["module"])
    stack = node.meta.get("nn_module_stack") or {}
    path = next((entry[0] for entry in reversed(list(stack.values()))), "")
    path = re.sub(r"@\d+", "", path)
    return path.removeprefix(MODULE_PREFIX) if path.startswith(MODULE_PREFIX) else ""


def source_line_of(node: fx.Node) -> str:
    """The innermost ``file:line`` of the user's code, or an empty string."""
    if "source_line" in node.meta:
        return str(node.meta["source_line"])
    return user_line(node.meta.get("stack_trace") or "")


def source_line_within(node: fx.Node, depth: int) -> tuple[str, int]:
    """The user's innermost line inside the ``depth``-th watched call around it; and how many there are."""
    pieces = _WATCHED_FRAME.split(node.meta.get("stack_trace") or "")
    return user_line("".join(pieces[depth:])), len(pieces) - 1
