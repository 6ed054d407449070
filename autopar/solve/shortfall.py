"""By how much a chain misses its memory: the cut and the options whose fullest stage is the least full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from autopar.solve.chain import ChainSolver
from autopar.solve.chain_problem import ChainProblem


@dataclass(frozen=True, slots=True)
class Excess:
    """The fullest stage of the leanest cut.

    Attributes:
        missing_bytes: beyond the limit; negative where it fits.
    """

    stage: int
    missing_bytes: int


def least_excess(problem: ChainProblem) -> Excess:
    """Least over all cuts and options of the memory of the fullest stage, less the limit."""
    solver, size, last = ChainSolver(problem), len(problem.blocks), problem.num_stages - 1
    # By the block after the stages so far and the word between: bytes and number of the fullest of them.
    fullest: dict[tuple[int, str], tuple[float, int]] = {(0, problem.first_word): (0.0, 0)}
    for stage in range(problem.num_stages):
        reached: dict[tuple[int, str], tuple[float, int]] = {}
        for (start, word), before in sorted(fullest.items()):
            for end, target, num_bytes in _stage_ends(problem, solver, stage, start, word):
                candidate = max(before, (num_bytes, stage))
                known = reached.get((end, target))
                if (stage == last) == (end == size) and (known is None or candidate[0] < known[0]):
                    reached[end, target] = candidate
        fullest = reached
    least = fullest.get((size, problem.last_word))
    if least is None or least[0] == float("inf"):
        return Excess(0, problem.limit_bytes)
    return Excess(least[1], int(least[0]) - problem.limit_bytes)


def _stage_ends(
    problem: ChainProblem, solver: ChainSolver, stage: int, start: int, word: str
) -> Iterator[tuple[int, str, float]]:
    """Where a stage that starts at a block in a word may end, with its least memory."""
    segments, composition = solver.segments(stage), None
    last = problem.num_stages - 1
    for block in range(start, len(problem.blocks) - (last - stage)):
        composition = segments.extend(composition, block)
        end = block + 1
        if problem.first_blocks and stage < last and problem.first_blocks[stage + 1] != end:
            continue
        row = segments.least_memory_bytes(composition)[segments.words.index(word)]
        for target, num_bytes in zip(segments.words, row, strict=True):
            if num_bytes < float("inf"):
                yield end, target, num_bytes
