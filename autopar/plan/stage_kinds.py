"""What stands under ``pipeline.stages`` and ``pipeline.blocks_per_stage``: its reading, its JSON Schema."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

from autopar.plan.bounds import Bound, StageSize
from autopar.plan.entry import Entry
from autopar.plan.kinds import Schema, Whole
from autopar.plan.ranges import MAX_NAMES, expand

_STAGE = re.compile(r"\d{1,6}(-\d{1,6})?|last|\*")
_NAME: Schema = {"type": ["string", "integer"], "description": "a block, or a range such as blocks.0-11"}


@dataclass(frozen=True, slots=True)
class Stages:
    """The blocks of every stage."""

    def read(self, entry: Entry) -> tuple[tuple[str, ...], ...]:
        """Names of blocks, ranges expanded."""
        seen: dict[str, int] = {}
        stages = []
        for index, stage in enumerate(entry.items()):
            names = stage.attempt(partial(self._names, index, seen))
            stages.append(tuple(names or ()))
        if not stages:
            entry.fail("'pipeline.stages' is empty; list the blocks of each stage, or delete the key")
        return tuple(stages)

    def _names(self, index: int, seen: dict[str, int], stage: Entry) -> list[str]:
        names: list[str] = []
        items = stage.items()
        for item in items:
            for name in item.attempt(_expanded) or ():
                if name in seen:
                    again = "twice" if seen[name] == index else f"again; it is already in stage {seen[name]}"
                    item.note(
                        f"stage {index} names block '{name}' {again}; every block runs once: delete one"
                    )
                    break
                seen[name] = index
                names.append(name)
            if len(seen) > MAX_NAMES:
                item.fail(f"the stages name more than {MAX_NAMES} blocks; no model has so many")
        if not items:
            stage.fail(f"stage {index} is empty; give it blocks, or delete it and lower mesh.pipeline")
        return names

    def schema(self) -> Schema:
        """Of a list of lists."""
        stage = {"type": "array", "items": _NAME, "minItems": 1}
        return {"type": "array", "items": stage, "minItems": 1}


def _expanded(item: Entry) -> tuple[str, ...]:
    try:
        return expand(item.name())
    except ValueError as problem:
        item.fail(f"in '{item.key}', {problem}")


@dataclass(frozen=True, slots=True)
class StageSizes:
    """How many blocks stages may hold: ``{0: "<=10", last: 2-8}``, or one bound for all."""

    def read(self, entry: Entry) -> tuple[StageSize, ...]:
        """One line for each key."""
        if not isinstance(entry.value, dict):
            return (StageSize("*", _size(entry)),)
        found = []
        for stages, below in entry.pairs():
            size = below.attempt(partial(_stage_size, stages))
            if size is not None:
                found.append(size)
        return tuple(found)

    def schema(self) -> Schema:
        """Of the mapping or of one bound."""
        size = Whole(1, MAX_NAMES, bounded=True).schema()
        lines = {"type": "object", "additionalProperties": False, "patternProperties": {_full(_STAGE): size}}
        return {"anyOf": [*size["anyOf"], lines]}


def _stage_size(stages: str, entry: Entry) -> StageSize:
    if not _STAGE.fullmatch(stages):
        entry.fail(
            f"'{stages}' in '{entry.key.rpartition('.')[0]}' names no stage; write its number from 0, a "
            'range such as 0-3, last, or "*" for every stage'
        )
    first, _, last = stages.partition("-")
    if last and int(last) < int(first):
        entry.fail(f"the range '{stages}' runs backwards; write the smaller number first")
    return StageSize(stages, _size(entry))


def _size(entry: Entry) -> Bound:
    size = Whole(1, MAX_NAMES, bounded=True).read(entry)
    return size if isinstance(size, Bound) else Bound(size, size)


def _full(pattern: re.Pattern[str]) -> str:
    return f"^({pattern.pattern})$"
