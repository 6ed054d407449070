"""Ranges of numbered names: ``blocks.0-11`` stands for twelve blocks, in a stage's list as in a pattern."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from autopar.plan.decisions import PatternLine
from autopar.plan.patterns import first_match

MAX_NAMES = 100_000
"""More names than any model has blocks: a range beyond it is a slip of the finger, not a plan."""

_RANGE = re.compile(r"(?P<head>(?:.*[^\d])?)(?P<first>\d+)-(?P<last>\d+)")
_NUMBERED = re.compile(r"(?P<head>(?:.*[^\d])?)(?P<number>0|[1-9]\d*)")


def expand(name: str) -> tuple[str, ...]:
    """The names that one entry stands for: ``blocks.0-2`` gives ``blocks.0``, ``blocks.1``, ``blocks.2``.

    One component may be a range, the last (``blocks.0-2``) or another (``blocks.0-2.attn``).

    Raises:
        ValueError: the range runs backwards, is longer than ``MAX_NAMES``, or is one of two.
    """
    components = name.split(".")
    ranged = [(i, match) for i, part in enumerate(components) if (match := _RANGE.fullmatch(part))]
    if not ranged:
        return (name,)
    if len(ranged) > 1:
        raise ValueError(f"'{name}' holds two ranges; write one entry per outer number")
    index, match = ranged[0]
    if max(len(match["first"]), len(match["last"])) > 9:
        raise ValueError(f"'{name}' is no range of blocks: its numbers are too large")
    first, last = int(match["first"]), int(match["last"])
    if last < first:
        raise ValueError(f"the range '{name}' runs backwards; write the smaller number first")
    if last - first >= MAX_NAMES:
        raise ValueError(
            f"the range '{name}' stands for {last - first + 1} names; at most {MAX_NAMES} are read"
        )
    before, after = components[:index], components[index + 1 :]
    return tuple(".".join([*before, f"{match['head']}{i}", *after]) for i in range(first, last + 1))


def compact(names: Iterable[str]) -> tuple[str, ...]:
    """The shortest list of entries that expands to ``names`` in their order: the inverse of ``expand``."""
    runs: list[tuple[str, str, int, int]] = []  # name, head, first, last
    entries: list[str | int] = []  # a name, or the index of its run
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match is None or _is_range(name):
            entries.append(name)
            continue
        head, number = match["head"], int(match["number"])
        if entries and isinstance(entries[-1], int) and runs[-1][1] == head and runs[-1][3] == number - 1:
            runs[-1] = (*runs[-1][:3], number)
        else:
            runs.append((name, head, number, number))
            entries.append(len(runs) - 1)
    return tuple(entry if isinstance(entry, str) else _run_text(*runs[entry]) for entry in entries)


def pattern_lines(words: Mapping[str, str]) -> tuple[PatternLine, ...]:
    """The fewest lines that give each name its word, in order; one word for all becomes ``"*"``."""
    if len(set(words.values())) == 1:
        return (PatternLine("*", next(iter(words.values()))),)
    lines: list[PatternLine] = []
    names = list(words)
    start = 0
    for end in range(1, len(names) + 1):
        if end == len(names) or words[names[end]] != words[names[start]]:
            lines.extend(PatternLine(entry, words[names[start]]) for entry in compact(names[start:end]))
            start = end
    if any(line.word != words[name] for name in names if (line := first_match(lines, name))):
        lines.sort(key=lambda line: -line.pattern.count("."))  # a module before the one that holds it
    return tuple(lines)


def _is_range(name: str) -> bool:
    return any(_RANGE.fullmatch(part) for part in name.split("."))


def _run_text(name: str, head: str, first: int, last: int) -> str:
    return name if first == last else f"{head}{first}-{last}"
