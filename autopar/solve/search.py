"""The best plan over all outer decisions, with how far it may be off and what is shown beside it.

``work_queue`` searches; the last looks, the runners-up and the baselines come after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from autopar.errors import InfeasibleError
from autopar.solve.baselines import baselines, legal_plans
from autopar.solve.candidate import Alternative, BaselineFound, Choices, Family, Job, SearchResult
from autopar.solve.candidates import Space
from autopar.solve.considered import News, considered
from autopar.solve.errands import Errands
from autopar.solve.floors import Progress
from autopar.solve.last_look import add_found, last_looks
from autopar.solve.runners_up import plans_of_other_meshes, promised_plans, runners_up
from autopar.solve.solved_ahead import LARGE_UNITS
from autopar.solve.work_queue import Search

_TOLERANCE = 1e-9


def search(
    choices: Choices,
    families: Iterable[Family],
    space: Space,
    job: Job,
    *,
    num_alternatives: int = 3,
    with_baselines: bool = False,
    time_limit_s: float | None = None,
    effort: int = 1,
    progress: Progress | None = None,
    watch: Callable[[News], None] | None = None,
) -> SearchResult | None:
    """The plan of least predicted step time; None where none fits.

    Args:
        num_alternatives: other meshes of which a candidate is solved as well, to be shown beside the best.
        with_baselines: whether the plans that people write by hand are found as well.
        time_limit_s: wall time after which the best found so far is returned with its gap.
        effort: times the usual work that may be done before what is left to prove is left.
        progress: told, in a few words, what is being solved.
        watch: told, before each candidate is solved, how far the search has come.

    Raises:
        InfeasibleError: nothing was found within the time limit.
        CaptureError: the model works at none of the micro-batches.
    """
    deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
    state = Search(choices, space, job, deadline=deadline, progress=progress, watch=watch, effort=effort)
    legal = tuple(families)
    state.start(legal)
    bound_s = state.run()
    best = state.best
    if best is None:
        if state.refused is not None and not state.shortfalls:
            raise state.refused
        if state.queue:
            raise InfeasibleError(
                "no plan was found within the time limit; allow more with --time-limit", binding="time limit"
            )
        return None
    num_solved = len(state.solved) + len(state.shortfalls)
    bound_s, alternatives, by_hand = _finish(state, legal, bound_s, num_alternatives, with_baselines)
    best = state.best
    assert best is not None
    bound_s = min(bound_s, best.step_s)
    gap = 1 - bound_s / best.step_s
    return SearchResult(
        best=best,
        bound_s=bound_s,
        gap=gap if gap > _TOLERANCE else 0.0,
        num_candidates=state.num_candidates,
        num_solved=num_solved,
        alternatives=alternatives,
        baselines=by_hand,
        considered=considered(state),
    )


def _finish(
    state: Search, legal: Sequence[Family], bound_s: float, num_alternatives: int, with_baselines: bool
) -> tuple[float, tuple[Alternative, ...], tuple[BaselineFound, ...]]:
    """The bound in the end, the runners-up, and the plans that people write by hand; whatever is better than
    the best becomes the best. Forks begin with the plans while this process goes on with the proof.
    """
    assert state.best is not None
    looks = last_looks(state, bound_s)
    promised = promised_plans(state, num_alternatives)
    kinds = baselines(state, legal) if with_baselines else []
    errands = [*looks, *promised, *kinds]
    top = state.best.candidate
    size = max(state.units_of(top), state.choices.num_blocks * top.num_stages)
    with Errands(state.choices, state.floors.of_tables, errands, are_large=size >= LARGE_UNITS) as forked:
        bound_s = state.prove()
        found = forked.results()
    for one in found[: len(looks)]:
        add_found(state, one)
    del found[: len(looks)]
    by_hand = found[len(promised) :]
    plans = plans_of_other_meshes(state, num_alternatives, found[: len(promised)])
    for plan in (*plans, *legal_plans(state, by_hand)):
        if plan.step_s < state.best.step_s:
            state.add(plan)
    return bound_s, runners_up(state, num_alternatives, plans), tuple(by_hand)
