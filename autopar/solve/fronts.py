"""All ways of running some blocks as one stage, where they are few: what each takes, the worse left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autopar.cost.choice import BlockChoice
from autopar.cost.stage_memory import StagePieces, rank_memory, stage_pieces
from autopar.cost.stage_time import stage_seconds
from autopar.cost.training import Training
from autopar.solve.candidate import ChoiceTable
from autopar.solve.stage_floor import repeated_elements

_MOST_WAYS = 256


@dataclass(frozen=True, slots=True)
class Way:
    """An option for every block of a stage, and what the stage then takes.

    Attributes:
        options: index of the choice of every block.
        input_word: placement of what comes in.
        output_word: placement of what goes out.
        output_bytes: handed to the next stage.
    """

    options: tuple[int, ...]
    input_word: str
    output_word: str
    forward_s: float
    backward_s: float
    weight_s: float
    sync_s: float
    update_s: float
    output_bytes: int
    measures: tuple[float, ...]


class Fronts:
    """The ways of the stages of one candidate; computed when asked for.

    Attributes:
        num_tried: ways that were worked out.
    """

    def __init__(
        self,
        table: ChoiceTable,
        training: Training,
        zero: Sequence[int],
        in_flight: Sequence[int],
        limit: int,
    ) -> None:
        self._table = table
        self._training = training
        self._zero = zero
        self._in_flight = in_flight
        self._limit = limit
        self._known: dict[object, tuple[Way, ...] | None] = {}
        self.num_tried = 0

    def of(self, stage: int, first: int, end: int) -> tuple[Way, ...] | None:
        """Every way of a stage that fits and that no other beats in everything; None where they are many."""
        kinds = self._table.blocks[first:end]
        repeated = repeated_elements(self._table.shared, first, end)
        key = (kinds, repeated, self._zero[stage], self._in_flight[stage])
        if key not in self._known:
            self._known[key] = self._ways(stage, kinds, repeated)
        return self._known[key]

    def _ways(self, stage: int, kinds: Sequence[int], repeated: tuple[int, ...]) -> tuple[Way, ...] | None:
        count = 1
        for kind in kinds:
            count *= len(self._table.kinds[kind])
            if count > _MOST_WAYS:
                return None
        kept: list[Way] = []
        for options in self._combinations(kinds, ()):
            self.num_tried += 1
            way = self._way(stage, kinds, options, repeated)
            if way is not None and not any(_beats(other, way) for other in kept):
                kept = [other for other in kept if not _beats(way, other)]
                kept.append(way)
        return tuple(kept)

    def _combinations(self, kinds: Sequence[int], before: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """Options whose words meet."""
        if len(before) == len(kinds):
            yield before
            return
        choices = self._table.kinds[kinds[len(before)]]
        word = self._table.kinds[kinds[len(before) - 1]][before[-1]].output_word if before else None
        for option, choice in enumerate(choices):
            if word in (None, choice.input_word):
                yield from self._combinations(kinds, (*before, option))

    def _way(
        self, stage: int, kinds: Sequence[int], options: tuple[int, ...], repeated: tuple[int, ...]
    ) -> Way | None:
        blocks = [self._table.kinds[kind][option] for kind, option in zip(kinds, options, strict=True)]
        pieces = stage_pieces(blocks, self._training, self._zero[stage], repeated)
        memory = rank_memory((pieces,), self._training, ((self._in_flight[stage],),))
        if memory.total_bytes > self._limit:
            return None
        seconds = stage_seconds(blocks, self._training, self._zero[stage], repeated)
        return Way(
            options,
            blocks[0].input_word,
            blocks[-1].output_word,
            seconds.forward_s,
            seconds.backward_s,
            seconds.weight_s,
            seconds.sync_s,
            seconds.update_s,
            blocks[-1].output_bytes,
            (
                seconds.forward_s,
                seconds.backward_s - seconds.weight_s,
                seconds.weight_s,
                seconds.sync_s,
                seconds.update_s,
                *_sizes(pieces, blocks),
            ),
        )


def _sizes(pieces: StagePieces, blocks: Sequence[BlockChoice]) -> tuple[float, ...]:
    """What decides whether the rank fits, and what crosses the boundary."""
    state = pieces.state
    return (
        state.parameters,
        state.gradients,
        state.optimizer,
        pieces.saved,
        pieces.running,
        pieces.updating,
        pieces.reduced,
        blocks[-1].output_bytes,
    )


def _beats(one: Way, other: Way) -> bool:
    return (
        one.input_word == other.input_word
        and one.output_word == other.output_word
        and all(a <= b for a, b in zip(one.measures, other.measures, strict=True))
    )
