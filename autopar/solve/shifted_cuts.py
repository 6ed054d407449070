"""A cut into stages moved, block by block, until every rank's memory holds its stages.

Stages of even times are not stages of even memory: embeddings and heads weigh much and take little, and early
stages hold more micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from autopar.cost.layout import Layout
from autopar.cost.layout_memory import rank_memories
from autopar.cost.prediction import StageMemory
from autopar.cost.training import training_of
from autopar.plan.bounds import Bound
from autopar.schedule.actions import stage_rank
from autopar.solve.candidate import Job

_MOST_MOVES = 12


def shifted(
    firsts: tuple[int, ...], num_blocks: int, job: Job, layout_at: Callable[[tuple[int, ...]], Layout]
) -> Layout | None:
    """The layout of a cut near a given one whose ranks all fit; None where none was found.

    Args:
        firsts: first block of every stage.
        layout_at: the layout of a cut.
    """
    sizes = job.sizes(len(firsts))
    layout = layout_at(firsts)
    memories = _memories(layout, job)
    if sum(m.total_bytes for m in memories) > len(memories) * job.memory_limit_bytes:
        return None
    totals = _totals(memories, job)
    seen = {firsts}
    for _ in range(_MOST_MOVES):
        if max(totals) <= job.memory_limit_bytes:
            return layout
        fullest = totals.index(max(totals))
        nearby = []
        for moved in _without_a_block(firsts, num_blocks, layout, fullest, sizes):
            if moved not in seen:
                seen.add(moved)
                other = layout_at(moved)
                own = _totals(_memories(other, job), job)
                nearby.append((max(own), moved, other, own))
        if not nearby:
            return None
        _, firsts, layout, totals = min(nearby, key=lambda item: item[:2])
    return None


def is_legal(firsts: Sequence[int], num_blocks: int, sizes: Sequence[Bound]) -> bool:
    """Whether no stage of a cut is empty, and each holds as many blocks as it may; without sizes, any."""
    held = [end - first for first, end in zip(firsts, (*firsts[1:], num_blocks), strict=True)]
    return min(held) > 0 and (not sizes or all(s.holds(n) for s, n in zip(sizes, held, strict=True)))


def _memories(layout: Layout, job: Job) -> list[StageMemory]:
    return list(rank_memories(layout, training_of(layout, job.cluster)))


def _totals(memories: Sequence[StageMemory], job: Job) -> list[int]:
    """What every rank holds; where the host's memory is short, more than any device has."""
    return [
        m.total_bytes
        if m.host_bytes <= job.cluster.host_bytes_per_device
        else job.memory_limit_bytes + m.host_bytes
        for m in memories
    ]


def _without_a_block(
    firsts: Sequence[int], num_blocks: int, layout: Layout, rank: int, sizes: Sequence[Bound]
) -> Iterator[tuple[int, ...]]:
    """Cuts in which a stage of a rank hands its first or last block to its neighbour."""
    ends = [*firsts[1:], num_blocks]
    for stage, (first, end) in enumerate(zip(firsts, ends, strict=True)):
        if stage_rank(layout.schedule, stage, layout.pipeline, layout.virtual) != rank or end - first < 2:
            continue
        for at, to in ((stage, first + 1), (stage + 1, end - 1)):
            if 0 < at < len(firsts):
                moved = (*firsts[:at], to, *firsts[at + 1 :])
                if is_legal(moved, num_blocks, sizes):
                    yield moved
