"""The same measurements made several times, as one.

A machine's speed changes while it is measured: its processors heat up, others use it. What is measured in one
pass after another is compared with what was measured at about the same moment, and the medians of the passes
hold for one speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from autopar.profile.spread import Spread, median_of

_Result = TypeVar("_Result")


def merged(passes: Sequence[_Result]) -> _Result:
    """Results of equal shape with the median of the passes in the place of every spread.

    Args:
        passes: dataclasses, dicts and tuples of spreads, or what is the same in all of them.
    """
    found: Any = _merged(passes)
    return found  # type: ignore[no-any-return]


def _merged(passes: Sequence[Any]) -> Any:
    first = passes[0]
    if isinstance(first, Spread):
        return median_of(passes)
    if isinstance(first, dict):
        return {key: _merged([one[key] for one in passes]) for key in first}
    if isinstance(first, tuple):
        return tuple(_merged(values) for values in zip(*passes, strict=True))
    if is_dataclass(first) and not isinstance(first, type):
        return replace(
            first, **{f.name: _merged([getattr(one, f.name) for one in passes]) for f in fields(first)}
        )
    return first
