"""Independent pieces of a search, done by this process and, where there are processors to spare, by forks.

What a fork finds speaks of the choices in its tables; it is handed over with references to the tables of this
process instead, which are equal.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from autopar.cost.choice import BlockChoice
from autopar.errors import AutoparError
from autopar.forked import Ahead, Ending
from autopar.solve.candidate import Choices

Place: TypeAlias = tuple[int, int, int]
"""Of tables: tensor degree, micro-batch, stride."""
_Reference: TypeAlias = tuple[Place, int, int, int]

# The longest wait for a fork; then this process does it after all.
_PATIENCE_S = 60.0


class Errands(Ending):
    """Some errands, wanted one after the other.

    Args:
        choices: the tables that they use.
        places: of the tables that are made.
        errands: each gives what can be pickled.
        are_large: whether forks are worth their start.
        begun: how many of the first this process is about to do by itself.
    """

    def __init__(
        self,
        choices: Choices,
        places: Iterable[Place],
        errands: Sequence[Callable[[], object]],
        *,
        are_large: bool,
        begun: int = 0,
    ) -> None:
        self._choices, self._places, self._errands = choices, places, errands
        self._ahead: Ahead | None = None
        if are_large and len(errands) > 1:
            self._ahead = Ahead(self._done_by_fork, len(errands), range(begun))

    def end(self) -> None:
        """Ends the forks, whatever they are doing."""
        if self._ahead is not None:
            self._ahead.end()

    def results(self) -> list[Any]:
        """What all give. The forks begin with the first, this process with the last."""
        found: dict[int, Any] = {}
        for position in reversed(range(len(self._errands))):
            if self._ahead is None or self._ahead.begin(position):
                found[position] = self._errands[position]()
        for position, errand in enumerate(self._errands):
            if position not in found:
                made = self.taken(position)
                found[position] = errand() if made is None else made
        return [found[position] for position in range(len(self._errands))]

    def is_begun(self, position: int) -> bool:
        """Whether a fork is at an errand, or through with it."""
        return self._ahead is not None and self._ahead.is_begun(position)

    def taken(self, position: int) -> Any:
        """What a fork has found, waited for if one is at it; None: the caller has to do it."""
        if self._ahead is None:
            return None
        made = self._ahead.take(position, _PATIENCE_S)
        return None if made is None else _Reader(made, self._choices).load()

    def _done_by_fork(self, position: int) -> bytes | None:
        try:
            found = self._errands[position]()
        except AutoparError:
            return None  # the parent is to see for itself
        file = io.BytesIO()
        _Writer(file, self._choices, self._places).dump(found)
        return file.getvalue()


class _Writer(pickle.Pickler):
    def __init__(self, file: io.BytesIO, choices: Choices, places: Iterable[Place]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._references: dict[int, _Reference] = {}
        for place in places:
            for number, table in enumerate(choices.tables(*place)):
                for kind, options in enumerate(table.kinds):
                    for index, choice in enumerate(options):
                        self._references[id(choice)] = place, number, kind, index

    def persistent_id(self, obj: object) -> _Reference | None:
        return self._references.get(id(obj)) if isinstance(obj, BlockChoice) else None


class _Reader(pickle.Unpickler):
    def __init__(self, data: bytes, choices: Choices) -> None:
        super().__init__(io.BytesIO(data))
        self._choices = choices

    def persistent_load(self, pid: _Reference) -> BlockChoice:
        place, number, kind, index = pid
        return self._choices.tables(*place)[number].kinds[kind][index]
