"""What a search found out about every candidate that it looked at: for pictures, and for who watches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autopar.solve.candidate import Candidate, Considered

if TYPE_CHECKING:
    from autopar.solve.work_queue import Search


@dataclass(frozen=True, slots=True)
class News:
    """How far a search has come.

    Attributes:
        num_done: candidates solved, or found not to fit.
        num_waiting: candidates and families that may still be better than the best plan.
        best_s: step time of the best plan so far; None before the first.
    """

    num_done: int
    num_waiting: int
    best_s: float | None


def news_of(state: Search) -> News:
    """How far a search has come."""
    best_s = None if state.best is None else state.best.step_s
    waiting = sum(1 for w in state.queue if best_s is None or w.bound_s < best_s)
    return News(len(state.solved) + len(state.shortfalls), waiting, best_s)


def considered(state: Search) -> tuple[Considered, ...]:
    """Every candidate that was solved or looked at; and those that do not fit, with what they might have
    taken."""
    found: dict[Candidate, Considered] = {}
    for solution in state.solved:
        other = found.get(solution.candidate)
        if other is None or solution.step_s < other.step_s:
            found[solution.candidate] = Considered(
                solution.candidate, solution.step_s, solution.prediction.peak_memory_bytes, True
            )
    for promise in state.promises:
        if promise.candidate not in found:
            found[promise.candidate] = Considered(
                promise.candidate, promise.step_s, promise.peak_bytes, True, is_solved=False
            )
    limit_bytes = state.job.memory_limit_bytes
    for candidate, shortfall in state.shortfalls.items():
        if candidate not in found:
            chain_s = state.choices.floor_s(candidate.tensor, candidate.micro_batch)
            guess_s = state.floors.guess_s(candidate, chain_s)
            found[candidate] = Considered(
                candidate, guess_s, limit_bytes + max(0, shortfall.missing_bytes), False
            )
    return tuple(found[candidate] for candidate in sorted(found))
