"""Lower bounds by what all ranks of a pipeline can hold together, whatever schedule they run.

From its forward to its backward, a micro-batch passes all later blocks twice. So over a step of S seconds, a
block holds what it saved of m micro-batches for

    w = m ρ / S    micro-batches at a time in the mean,    ρ = Σ (F + B) of the block and all later ones

and the mean over time of what all ranks hold is no more than their memory (Little's law). Plans of less than
S seconds satisfy, with M for the memory of all ranks beside what their blocks need while they run,

    Σ held + w · saved <= M    over the options of all blocks

and none takes less for a micro-batch than, for any price λ >= 0 of a byte,

    Σ min over options (F + B + λ (held + w · saved)) - λ M.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autopar.solve.candidate import ChoiceTable
from autopar.solve.parts import Parts, Row

# Of the blocks of a kind in a row, so many places are told apart.
_MOST_PLACES = 16
# Of the ways of reading the time of options, those that tell most without memory.
_MOST_READINGS = 2
# Prices that are looked at, at most.
_MOST_LINES = 30
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class _Places:
    """Blocks of one kind in a row.

    Attributes:
        count: how many.
        path_s: least time of the last of them and all later blocks, forward and backward.
        input_path_s: the same without the weight halves of the backward.
    """

    kind: int
    count: int
    path_s: float
    input_path_s: float


class MemoryFloor:
    """Of one table.

    Args:
        table: for the micro-batch that is bounded.
    """

    def __init__(self, table: ChoiceTable) -> None:
        self._table = table

    def chain_s(
        self,
        parts: Parts,
        memory_bytes: float,
        *,
        num_micro_batches: int,
        step_s: float,
        splits: bool,
        num_stages: int,
        is_one_stage: bool = False,
    ) -> float:
        """Least forward and backward of a micro-batch through all blocks, of plans with a shorter step;
        infinite where there are none.

        Args:
            parts: of the table's options: what all plans need at least.
            memory_bytes: of all ranks together, for what blocks hold and save.
            step_s: plans that take as long are of no interest.
            splits: whether the backward pass is split.
            num_stages: at most.
            is_one_stage: whether one rank holds all blocks as one stage.
        """
        weights = [
            1.0 if is_one_stage else num_micro_batches * (p.input_path_s if splits else p.path_s) / step_s
            for p in self._places
        ]
        readings = self._readings(parts, num_stages)
        counts = np.array([p.count for p in self._places], float)
        known = _Options.of(parts, [p.kind for p in self._places], np.array(weights))
        return max(known.least_s(times, counts, memory_bytes) for times in readings)

    def _readings(self, parts: Parts, num_stages: int) -> list[Row]:
        """Times of the options that no stage goes below, each read in another way."""
        found: dict[bytes, tuple[float, Row]] = {}
        counts, size = Counter(self._table.blocks), len(self._table.blocks)
        for forward, one in zip(parts.forward_s.weights, parts.forward_s.spared, strict=True):
            for backward, other in zip(parts.input_s.weights, parts.input_s.spared, strict=True):
                # No stage is spared more than its first block's.
                spared_s = num_stages * float(one.max() + other.max())
                times: Row = forward + backward + parts.weight_s - spared_s / size
                if (key := times.tobytes()) not in found:
                    least_s = {kind: float(times[parts.kind == kind].min()) for kind in counts}
                    found[key] = sum(counts[kind] * least_s[kind] for kind in counts), times
        ranked = sorted(found.values(), key=lambda one: -one[0])
        return [times for _, times in ranked[:_MOST_READINGS]]

    @cached_property
    def _places(self) -> list[_Places]:
        least = [min(c.forward_s + c.backward_s for c in kind) for kind in self._table.kinds]
        least_input = [
            min(c.forward_s + c.backward_s - c.backward_weight_s for c in kind) for kind in self._table.kinds
        ]
        blocks = self._table.blocks
        length = -(-len(blocks) // _MOST_PLACES)
        found: list[_Places] = []
        path_s = input_path_s = 0.0
        for block in reversed(range(len(blocks))):
            kind = blocks[block]
            path_s, input_path_s = path_s + least[kind], input_path_s + least_input[kind]
            if found and found[-1].kind == kind and found[-1].count < length:
                last = found.pop()
                found.append(_Places(kind, last.count + 1, last.path_s, last.input_path_s))
            else:
                found.append(_Places(kind, 1, path_s, input_path_s))
        return found


@dataclass(frozen=True, slots=True)
class _Options:
    """Of every place its options, one a column; where there are fewer, the first again.

    Attributes:
        index: of the options in their table.
        bytes_held: by each of the blocks of a place, in the mean over a step.
    """

    index: NDArray[np.int64]
    bytes_held: Row

    @classmethod
    def of(cls, parts: Parts, kinds: Sequence[int], weights: Row) -> _Options:
        own = {kind: np.flatnonzero(parts.kind == kind) for kind in dict.fromkeys(kinds)}
        most = max(len(options) for options in own.values())
        index = np.array([np.resize(own[kind], most) for kind in kinds])
        held = parts.held_bytes[index] + weights[:, None] * parts.saved_bytes[index]
        return cls(index, held)

    def least_s(self, times: Row, counts: Row, memory_bytes: float) -> float:
        """Least time of all blocks within so much memory; infinite where they do not fit."""
        own = times[self.index]
        rows = np.arange(len(own))

        def least_at(price: float) -> _Line:
            chosen = (own + price * self.bytes_held).argmin(axis=1)
            held = float(counts @ self.bytes_held[rows, chosen])
            return _Line(float(counts @ own[rows, chosen]), held - memory_bytes)

        quick = least_at(0.0)
        if quick.missing_bytes <= 0:
            return quick.seconds
        lean = self._leanest(own, counts, memory_bytes)
        if lean.missing_bytes > memory_bytes * _TOLERANCE:
            return float("inf")
        best_s = lean.seconds if lean.missing_bytes >= 0 else quick.seconds
        # The bound is concave in the price: its top lies between a line that rises and one that falls, and
        # where these meet is looked at next.
        for _ in range(_MOST_LINES if lean.missing_bytes < 0 else 0):
            price = (lean.seconds - quick.seconds) / (quick.missing_bytes - lean.missing_bytes)
            middle = least_at(price)
            best_s = max(best_s, middle.at(price))
            if middle.at(price) >= quick.at(price) * (1 - _TOLERANCE):
                break
            quick, lean = (middle, lean) if middle.missing_bytes > 0 else (quick, middle)
        return best_s * (1 - _TOLERANCE)

    def _leanest(self, own: Row, counts: Row, memory_bytes: float) -> _Line:
        """Of the options that hold least, the quickest of these."""
        least = self.bytes_held.min(axis=1)
        seconds = np.where(self.bytes_held == least[:, None], own, np.inf).min(axis=1)
        return _Line(float(counts @ seconds), float(counts @ least) - memory_bytes)


@dataclass(frozen=True, slots=True)
class _Line:
    """What some options take, by the price of a byte that they hold too much.

    Attributes:
        missing_bytes: by which they exceed memory; negative: what they leave.
    """

    seconds: float
    missing_bytes: float

    def at(self, price: float) -> float:
        """Time and what is missing, at its price."""
        return self.seconds + price * self.missing_bytes
