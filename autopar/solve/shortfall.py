"""By how much a chain misses its memory: the cut and the options whose fullest stage is the least full."""

from __future__ import annotations

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
    # fullest[block]: (bytes, stage) of the fullest stage when the stages so far end before the block.
    fullest: dict[int, tuple[float, int]] = {0: (0.0, 0)}
    for stage in range(problem.num_stages):
        segments = solver.segments(stage)
        reached: dict[int, tuple[float, int]] = {}
        for start, before in sorted(fullest.items()):
            composition = None
            for block in range(start, size - (last - stage)):
                composition = segments.extend(composition, block)
                end = block + 1
                if (stage == last) != (end == size):
                    continue
                if problem.first_blocks and stage < last and problem.first_blocks[stage + 1] != end:
                    continue
                candidate = max(before, (segments.least_memory_bytes(composition), stage))
                if end not in reached or candidate[0] < reached[end][0]:
                    reached[end] = candidate
        fullest = reached
    if size not in fullest or fullest[size][0] == float("inf"):
        return Excess(0, problem.limit_bytes)
    num_bytes, stage = fullest[size]
    return Excess(stage, int(num_bytes) - problem.limit_bytes)
