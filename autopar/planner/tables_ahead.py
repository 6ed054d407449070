"""Tables that a search will ask for, made beside it by forks of this process.

Making tables takes half of a search, and which are asked for is known beforehand but for a few: of every
tensor degree those of the smallest micro-batch, of some larger ones, and of the largest. A table is the same
whoever makes it, so that the plan is the same on any number of processors.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TypeAlias

import torch

from autopar.errors import AutoparError
from autopar.forked import Ahead, Ending
from autopar.planner.model_choices import ModelChoices
from autopar.solve.candidate import ChoiceTable, Family

Key: TypeAlias = tuple[int, int]
"""Tensor degree and micro-batch."""

# Seconds of making tables from which on a fork is worth its start.
_WORTH_A_FORK_S = 0.1
# A table takes no longer than so many times the slowest so far, and so many seconds.
_PATIENCE, _PATIENCE_S = 10.0, 20.0
# Micro-batches that a first look makes tables of lie so many times apart (``solve.scout``).
_STEP = 16


class TablesAhead(Ending):
    """Implements ``solve.candidate.Choices`` on others, with tables made beside the search.

    Args:
        choices: makes the tables.
        families: what is searched.
    """

    def __init__(self, choices: ModelChoices, families: Sequence[Family]) -> None:
        self._choices = choices
        sure, likely = likely_keys(families)
        self._keys = (*sure, *likely)
        self._positions = {key: position for position, key in enumerate(self._keys)}
        self._ahead: Ahead | None = None
        self._spent_s = self._slowest_s = 0.0
        # Blocks that other searches have costed are not costed again; a fork could not add to them.
        self._may_fork = len(sure) > 1 and not choices.has_store

    def end(self) -> None:
        """Ends the forks, whatever they are doing."""
        if self._ahead is not None:
            self._ahead.end()

    @property
    def num_blocks(self) -> int:
        """Length of the chain."""
        return self._choices.num_blocks

    @property
    def trainable_elements(self) -> int:
        """Elements of all parameters with a gradient, unsharded."""
        return self._choices.trainable_elements

    def floor_s(self, tensor: int, micro_batch: int) -> float:
        """Least seconds of all blocks for a micro-batch, forward and backward, known without tables."""
        return self._choices.floor_s(tensor, micro_batch)

    def tables(
        self, tensor: int, micro_batch: int, tensor_stride: int = 1, *, thorough: bool = False
    ) -> tuple[ChoiceTable, ...]:
        """The choices; one table for every joint placement of the tied parameters.

        Args:
            thorough: whether what is near the best of every block is among them as well.
        """
        is_plain = tensor_stride == 1 and not thorough
        if not is_plain or self._choices.has_tables(tensor, micro_batch):
            return self._choices.tables(tensor, micro_batch, tensor_stride, thorough=thorough)
        key = tensor, micro_batch
        if self._ahead is not None and key in self._positions:
            patience_s = _PATIENCE * self._slowest_s + _PATIENCE_S
            made = self._ahead.take(self._positions[key], patience_s, self._make_another)
            if made is not None:
                self._choices.give(tensor, micro_batch, pickle.loads(made))
        return self._make(key)

    def _make(self, key: Key) -> tuple[ChoiceTable, ...]:
        """Tables that this process makes, where they are not made already."""
        started = time.monotonic()
        tables = self._choices.tables(*key)
        took_s = time.monotonic() - started
        self._spent_s += took_s
        self._slowest_s = max(self._slowest_s, took_s)
        if self._may_fork and self._spent_s > _WORTH_A_FORK_S:
            self._may_fork = False
            if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                begun = [
                    position for key, position in self._positions.items() if self._choices.has_tables(*key)
                ]
                self._ahead = Ahead(self._made_by_fork, len(self._keys), begun)
        return tables

    def _make_another(self) -> bool:
        """Makes tables that are likely to be asked for and that nobody has begun, if there are any."""
        assert self._ahead is not None
        for position, key in enumerate(self._keys):
            if self._ahead.begin(position):
                with suppress(AutoparError):  # said when they are asked for
                    self._make(key)
                return True
        return False

    def _made_by_fork(self, position: int) -> bytes | None:
        torch.set_num_threads(1)  # threads do not outlive a fork
        try:
            return pickle.dumps(self._choices.tables(*self._keys[position]), pickle.HIGHEST_PROTOCOL)
        except AutoparError:
            return None  # the parent is to see for itself


def likely_keys(families: Sequence[Family]) -> tuple[tuple[Key, ...], tuple[Key, ...]]:
    """Tables that a search of families asks for, in about that order: surely, and likely."""
    sizes: dict[int, set[int]] = {}
    whole: dict[int, int] = {}
    for family in families:
        sizes.setdefault(family.tensor, set()).add(family.micro_batch)
        if family.pipeline == family.num_micro_batches == 1:
            whole[family.tensor] = family.micro_batch
    degrees = sorted(sizes, key=lambda degree: (degree == 1, degree))  # those of one rank cost little
    sure: dict[Key, None] = {}
    likely: dict[Key, None] = {}
    for degree in degrees:
        smallest, largest = min(sizes[degree]), max(sizes[degree])
        if _STEP * smallest in sizes[degree]:
            sure[degree, _STEP * smallest] = None
        sure[degree, smallest] = None
        likely[degree, largest] = None
    several = [degree for degree in degrees if degree > 1]
    for degree in degrees[len(several) :]:
        for size in (*sorted(sizes[degree])[1:3], whole.get(degree)):
            if size is not None:
                likely[degree, size] = None
    # As many samples as ranks divide them; the most at once; twice as many; few; four times as many.
    for degree in several:
        likely[degree, degree] = None
    for degree in several:
        likely[degree, whole.get(degree, degree)] = None
    for degree in several:
        for size in (2 * degree, *sorted(sizes[degree])[1:3]):
            likely[degree, size] = None
    for degree in several:
        likely[degree, 4 * degree] = None
    known = {key: None for key in likely if key[1] in sizes[key[0]]}
    return tuple(sure), tuple(key for key in known if key not in sure)
