"""One way of running an operator on shards, and its text form for the ``operators:`` section of a plan."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from autopar.sharding.placement import REPLICATE, Placement, parse_placement

_PLACEMENT = re.compile(r"replicate|partial|shard\(\s*\d+\s*(?:,\s*\d+\s*)?\)")


@dataclass(frozen=True, slots=True)
class Rule:
    """Inputs laid out as ``inputs`` give, computed locally on every rank, an output laid out as ``output``.

    Attributes:
        inputs: one placement per tensor argument, in the order in which they occur in args, then kwargs.
        output: placement of the result; of every element where the operator returns a tuple.
        local: name of the function in ``lower.local_operators`` that replaces the operator; None keeps it.
        rest: for operators that return a tuple whose elements differ, the placements of elements 1, 2, ...
        is_replicated: whether every rank does the same work on whole tensors.
    """

    inputs: tuple[Placement, ...]
    output: Placement
    local: str | None = None
    rest: tuple[Placement, ...] = ()
    is_replicated: bool = field(init=False, repr=False, compare=False)
    _text: str = field(init=False, repr=False, compare=False, default="")

    def __post_init__(self) -> None:
        whole = all(p == REPLICATE for p in (*self.inputs, self.output, *self.rest))
        object.__setattr__(self, "is_replicated", whole)

    def element(self, index: int) -> Placement:
        """Placement of element ``index`` of an operator that returns a tuple."""
        return self.rest[index - 1] if index > 0 and self.rest else self.output

    def __str__(self) -> str:
        if not self._text:  # asked for often: what a block runs is told apart by it
            outputs = (self.output, *self.rest)
            text = f"{', '.join(map(str, self.inputs))} -> {', '.join(map(str, outputs))}".strip()
            object.__setattr__(self, "_text", text)
        return self._text


def replicated(num_inputs: int) -> Rule:
    """The rule that is always right: whole tensors in, whole tensors out."""
    return Rule((REPLICATE,) * num_inputs, REPLICATE)


def _placements(text: str) -> tuple[Placement, ...] | None:
    """Placements in a comma separated list, or None where anything else stands in it."""
    if re.sub(r"[\s,]", "", _PLACEMENT.sub("", text)):
        return None
    found = (parse_placement(word) for word in _PLACEMENT.findall(text))
    return tuple(placement for placement in found if placement is not None)


def parse_rule(text: str) -> Rule | None:
    """The inverse of ``str`` (without ``local``, which the text does not name); None if it is no rule."""
    left, arrow, right = text.partition("->")
    inputs, outputs = _placements(left), _placements(right)
    if not arrow or inputs is None or not outputs:
        return None
    return Rule(inputs, outputs[0], None, outputs[1:])


def find_rule(text: str, rules: Iterable[Rule]) -> Rule | None:
    """The rule among ``rules`` that ``text`` names, or None."""
    wanted = parse_rule(text)
    if wanted is None:
        return None
    return next((r for r in rules if str(r) == str(wanted)), None)
