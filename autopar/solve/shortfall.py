"""By how much a chain misses its memory: the cut and the options whose fullest stage is the least full.

Whether a chain fits into stages of a given size is quick to tell: stage by stage, as many blocks as fit,
since what is left to later stages only shrinks (of prefixes that end in different words, the longest of
each). The least size is found by halving.
"""

from __future__ import annotations

from dataclasses import dataclass

from autopar.solve.chain import ChainSolver
from autopar.solve.chain_problem import ChainProblem

_MOST_BYTES = 2**62


@dataclass(frozen=True, slots=True)
class Excess:
    """The fullest stage of the leanest cut.

    Attributes:
        missing_bytes: beyond the limit; negative where it fits.
    """

    stage: int
    missing_bytes: int


def least_excess(problem: ChainProblem, like: ChainSolver | None = None) -> Excess:
    """Least over all cuts and options of the memory of the fullest stage, less the limit.

    Args:
        like: of a problem that differs in memory alone, whose work is used again.
    """
    packing = _Packing(problem, like)
    # The only stage holds what it holds, whatever may be in it.
    low, high = 0, _MOST_BYTES if problem.num_stages == 1 else max(problem.limit_bytes, 1)
    found = packing.fullest(high)
    while found is None:
        low, high = high, 2 * high
        if low >= _MOST_BYTES:
            return Excess(0, problem.limit_bytes)
        found = packing.fullest(high)
    while problem.num_stages > 1 and low + 1 < found[0]:
        middle = (low + found[0]) // 2
        smaller = packing.fullest(middle)
        if smaller is None:
            low = middle
        else:
            found = smaller
    return Excess(found[1], found[0] - problem.limit_bytes)


def can_fit(problem: ChainProblem, like: ChainSolver | None = None) -> bool:
    """Whether some cut and options stay within the limit, the same for all stages; arguments as those of
    ``least_excess``."""
    return _Packing(problem, like).fullest(problem.limit_bytes) is not None


class _Packing:
    def __init__(self, problem: ChainProblem, like: ChainSolver | None) -> None:
        self._problem = problem
        self._solver = ChainSolver(problem, like=like)

    def fullest(self, size_bytes: int) -> tuple[int, int] | None:
        """Bytes and number of the fullest stage of a cut whose stages all stay within a size."""
        problem, blocks = self._problem, len(self._problem.blocks)
        last = problem.num_stages - 1
        if last >= blocks:
            return None
        # By the word between: the furthest block reached, and bytes and number of the fullest stage so far.
        reached: dict[str, tuple[int, tuple[int, int]]] = {problem.first_word: (0, (0, 0))}
        for stage in range(problem.num_stages):
            after: dict[str, tuple[int, tuple[int, int]]] = {}
            for word, (start, fullest) in sorted(reached.items()):
                for target, (end, num_bytes) in self._furthest(stage, start, word, size_bytes).items():
                    candidate = (end, max(fullest, (num_bytes, stage)))
                    known = after.get(target)
                    if known is None or (-candidate[0], candidate[1]) < (-known[0], known[1]):
                        after[target] = candidate
            reached = after
        found = reached.get(problem.last_word)
        return found[1] if found is not None and found[0] == blocks else None

    def _furthest(self, stage: int, start: int, word: str, size_bytes: int) -> dict[str, tuple[int, int]]:
        """By the word in which a stage ends: the furthest end within the size, and its bytes."""
        segments, composition = self._solver.segments(stage), None
        problem, last = self._problem, self._problem.num_stages - 1
        firsts = problem.first_blocks
        furthest = len(problem.blocks) - (last - stage)
        only = None if firsts is None else firsts[stage + 1] if stage < last else len(problem.blocks)
        only = len(problem.blocks) if stage == last else only
        found: dict[str, tuple[int, int]] = {}
        source = segments.words.index(word)
        for block in range(start, furthest):
            composition = segments.extend(composition, block)
            row = segments.least_memory_bytes(composition)[source]
            fitting = {t: int(b) for t, b in zip(segments.words, row, strict=True) if b <= size_bytes}
            if not fitting and min(segments.leanest_bytes(composition)) > size_bytes:
                break
            if only in (None, block + 1):
                found.update({target: (block + 1, num_bytes) for target, num_bytes in fitting.items()})
        return found
