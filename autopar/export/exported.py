"""What an exporter hands back, and how several of them say the same things."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from autopar.export.subject import Subject
from autopar.plan.decisions import Recompute


@dataclass(frozen=True, slots=True)
class Exported:
    """A plan in the words of another tool.

    Attributes:
        text: of the file.
        left_out: what the target cannot say, one line each: the plan's key, and what becomes of it.
    """

    text: str
    left_out: tuple[str, ...]


def commented(lines: Iterable[str], mark: str = "#") -> str:
    """Lines as comments."""
    return "".join(f"{mark} {line}\n" for line in lines)


def header(subject: Subject, target: str, left_out: Iterable[str]) -> list[str]:
    """First lines of every file: what it is, how many devices it wants, and what it leaves out."""
    pipeline, data, tensor = subject.degrees
    named = subject.plan.path or "a plan"
    lines = [
        f"{named} for {target}, written by `autopar export`.",
        f"{pipeline * data * tensor} devices: pipeline {pipeline} x data {data} x tensor {tensor};"
        f" micro-batch {subject.plan.micro_batch}, global batch {subject.plan.global_batch}.",
    ]
    missing = list(left_out)
    return [
        *lines,
        *(["What the plan says and this cannot:"] if missing else []),
        *(f"- {x}" for x in missing),
    ]


def recompute_word(subject: Subject) -> Recompute | None:
    """The word of all layers (of all blocks, if no layer repeats); None where they differ."""
    words = {block.recompute for block in subject.layers or subject.blocks}
    return words.pop() if len(words) == 1 else None


def general(name: str) -> str:
    """A module's name with ``*`` for every number, as targets write patterns."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)", "*", name)


def one_zero_level(subject: Subject, left_out: list[str]) -> int:
    """The ZeRO level of all stages; the highest where they differ, which is said."""
    levels = subject.zero_levels
    if len(set(levels)) > 1:
        left_out.append(f"zero: {list(levels)}: one level for all stages; {max(levels)} is written")
    return max(levels)
