"""Matching of module, parameter and block names against the patterns of a plan."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from autopar.plan.decisions import PatternLine

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_RANGE = re.compile(r"^(?P<head>.*?)(?P<first>\d+)-(?P<last>\d+)$")


@lru_cache(maxsize=4096)
def _component_matches(pattern: str, component: str) -> bool:
    if pattern == "*":
        return True
    ranged = _RANGE.match(pattern)
    if ranged and component.startswith(ranged["head"]) and component[len(ranged["head"]) :].isdigit():
        return int(ranged["first"]) <= int(component[len(ranged["head"]) :]) <= int(ranged["last"])
    return pattern == component


def matches(pattern: str, name: str) -> bool:
    """Whether ``pattern`` names ``name`` or a module that holds it.

    ``*`` matches one component and ``0-5`` a range of numbers:
    ``matches('blocks.*.attn', 'blocks.3.attn.qkv.weight')``.
    """
    wanted, given = pattern.split("."), name.split(".")
    return len(wanted) <= len(given) and all(
        _component_matches(w, g) for w, g in zip(wanted, given, strict=False)
    )


def generalised(name: str) -> str:
    """A module's or parameter's name with ``*`` for every number: ``blocks.*.attn``."""
    return _NUMBER.sub("*", name)


def first_match(lines: Iterable[PatternLine], name: str) -> PatternLine | None:
    """The first line whose pattern matches ``name``, or None."""
    return next((line for line in lines if matches(line.pattern, name)), None)
