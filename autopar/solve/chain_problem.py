"""The table that the chain solver reads: blocks in a row, the ways of running each, and the stages to cut
them into.

The objective of a chain cut into stages is ``Σ stage_s + (m - 1) · max stage_s`` for m micro-batches, where
stage_s sums, over the blocks of the stage, the seconds of the option chosen, what the segment adds to them,
and the hand-over at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from autopar.plan.bounds import Bound


@dataclass(frozen=True, slots=True)
class Option:
    """One way of running a block: cost on one rank for one micro-batch.

    Attributes:
        input_word: placement of what comes in; must be the previous block's ``output_word``.
        output_word: placement of what goes out.
        seconds: forward and backward.
        saved_bytes: kept for each micro-batch in flight.
        held_bytes: kept always (parameters, gradients, optimiser state).
        transient_bytes: lives only while the block runs; the largest of a stage counts.
        send_s: handing the output to another stage and its gradient back; equal for the options of a block
            that have the same output word.
    """

    input_word: str
    output_word: str
    seconds: float
    saved_bytes: int
    held_bytes: int
    transient_bytes: int
    send_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Overhead:
    """Memory of a block beyond its option's that does not simply add up over a stage.

    Attributes:
        paired_bytes: the largest sum over two neighbouring blocks counts (parameters gathered ahead).
        single_bytes: the largest counts (buffers that blocks use in turn).
        floor_bytes: adds up to a second peak, without activations, that must fit as well (the update).
    """

    paired_bytes: int = 0
    single_bytes: int = 0
    floor_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Shared:
    """A tied parameter: a stage that holds several of these blocks holds it once.

    Attributes:
        blocks: ascending indices of the blocks that use it.
        held_bytes: counted in each of them; deducted for all but one of a stage.
        seconds: likewise.
        overhead: likewise.
    """

    blocks: tuple[int, ...]
    held_bytes: int
    seconds: float = 0.0
    overhead: Overhead = Overhead()


@dataclass(frozen=True, slots=True)
class ChainProblem:
    """Blocks to be cut into ``len(in_flight)`` stages.

    Attributes:
        tables: one or several tables ``kind -> options``; stages differ in table where their ZeRO level
            differs.
        blocks: kind of each block; equal kinds have equal options.
        in_flight: micro-batches whose saved bytes each stage keeps at once.
        num_micro_batches: m.
        limit_bytes: memory of a stage for what options count.
        limits: of every stage, where they differ; empty: ``limit_bytes``.
        table_of_stage: which table each stage reads; empty: the first.
        shared: tied parameters.
        overheads: per table and kind; empty: none.
        carry_s: per block, handing on what skips it where a stage ends there, beside ``send_s``; empty: none.
        extra_s: seconds that the segment of stage (first argument) from a block up to and without another
            takes beside its options'; None: nothing.
        first_blocks: first block of every stage, if pinned.
        sizes: bound on the blocks of every stage; empty: none.
        first_word: placement in which the first block is fed.
        last_word: placement of the last block's output.
    """

    tables: tuple[tuple[tuple[Option, ...], ...], ...]
    blocks: tuple[int, ...]
    in_flight: tuple[int, ...]
    num_micro_batches: int
    limit_bytes: int
    table_of_stage: tuple[int, ...] = ()
    shared: tuple[Shared, ...] = ()
    overheads: tuple[tuple[Overhead, ...], ...] = ()
    carry_s: tuple[float, ...] = ()
    first_blocks: tuple[int, ...] | None = None
    first_word: str = "replicate"
    last_word: str = "replicate"
    limits: tuple[int, ...] = ()
    extra_s: Callable[[int, int, int], float] | None = None
    sizes: tuple[Bound, ...] = ()

    @property
    def num_stages(self) -> int:
        """Pipeline stages."""
        return len(self.in_flight)

    def may_hold(self, stage: int, num_blocks: int) -> bool:
        """Whether a stage may hold so many blocks."""
        return not self.sizes or self.sizes[stage].holds(num_blocks)

    def limit(self, stage: int) -> int:
        """Memory of a stage."""
        return self.limits[stage] if self.limits else self.limit_bytes

    def overhead(self, stage: int, kind: int) -> Overhead:
        """Overhead of a kind of block in a stage."""
        if not self.overheads:
            return Overhead()
        return self.overheads[self.table_of_stage[stage] if self.table_of_stage else 0][kind]

    def table(self, stage: int) -> tuple[tuple[Option, ...], ...]:
        """``kind -> options`` of a stage."""
        return self.tables[self.table_of_stage[stage] if self.table_of_stage else 0]

    def options(self, stage: int, block: int) -> tuple[Option, ...]:
        """What can be chosen for a block in a stage."""
        return self.table(stage)[self.blocks[block]]


@dataclass(frozen=True, slots=True)
class StageLoad:
    """What a stage costs: seconds per micro-batch, peak bytes."""

    seconds: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class ChainSolution:
    """A cut and an option per block.

    Attributes:
        first_blocks: first block of every stage.
        options: index of the option of every block, in its stage's table.
        loads: of every stage, recomputed from the choice.
        objective_s: recomputed from the choice.
        bound_s: proven lower bound; equal to the objective when optimal.
    """

    first_blocks: tuple[int, ...]
    options: tuple[int, ...]
    loads: tuple[StageLoad, ...]
    objective_s: float
    bound_s: float


def objective_s(problem: ChainProblem, stage_seconds: Sequence[float]) -> float:
    """``Σ stage + (m - 1) · max stage``."""
    return sum(stage_seconds) + (problem.num_micro_batches - 1) * max(stage_seconds)


def stage_ranges(problem: ChainProblem, first_blocks: Sequence[int]) -> list[range]:
    """The blocks of every stage."""
    ends = [*first_blocks[1:], len(problem.blocks)]
    return [range(first, end) for first, end in zip(first_blocks, ends, strict=True)]


def evaluate_chain(
    problem: ChainProblem, first_blocks: Sequence[int], options: Sequence[int]
) -> tuple[StageLoad, ...] | None:
    """What every stage costs under a cut and an option per block; None where words do not meet."""
    loads, word = [], problem.first_word
    for stage, blocks in enumerate(stage_ranges(problem, first_blocks)):
        for block in blocks:
            option = problem.options(stage, block)[options[block]]
            if option.input_word != word:
                return None
            word = option.output_word
        loads.append(_stage_load(problem, stage, blocks, options))
    return tuple(loads) if word == problem.last_word else None


def _stage_load(problem: ChainProblem, stage: int, blocks: range, options: Sequence[int]) -> StageLoad:
    seconds, resident, transient = 0.0, 0, 0
    paired, single, floor = [], 0, 0
    for block in blocks:
        option = problem.options(stage, block)[options[block]]
        overhead = problem.overhead(stage, problem.blocks[block])
        repeated = [
            s for s in problem.shared if block in s.blocks and any(b in blocks for b in s.blocks if b < block)
        ]
        seconds += option.seconds - sum(s.seconds for s in repeated)
        resident += option.saved_bytes * problem.in_flight[stage] + option.held_bytes
        resident -= sum(s.held_bytes for s in repeated)
        transient = max(transient, option.transient_bytes)
        paired.append(overhead.paired_bytes - sum(s.overhead.paired_bytes for s in repeated))
        single = max(single, overhead.single_bytes - sum(s.overhead.single_bytes for s in repeated))
        floor += overhead.floor_bytes - sum(s.overhead.floor_bytes for s in repeated)
    if problem.extra_s is not None:
        seconds += problem.extra_s(stage, blocks[0], blocks[-1] + 1)
    if stage + 1 < problem.num_stages:
        seconds += problem.options(stage, blocks[-1])[options[blocks[-1]]].send_s
        seconds += problem.carry_s[blocks[-1]] if problem.carry_s else 0.0
    largest_pair = max((a + b for a, b in pairwise(paired)), default=paired[0])
    return StageLoad(seconds, max(resident + transient + largest_pair + single, floor))
