"""Small changes to a whole plan, each judged by the step model: a block moves to the next stage, or takes
another option."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from autopar.cost.choice import BlockChoice
from autopar.cost.layout import Layout
from autopar.cost.prediction import Prediction
from autopar.cost.step import predict
from autopar.solve.candidate import ChoiceTable, Job, MeshSolution
from autopar.solve.chain_build import layout_of
from autopar.solve.shifted_cuts import is_legal

# Actions of schedules that are played, at most.
_MOST_WORK = 150_000
_TOLERANCE = 1e-9
_Plan = tuple[tuple[int, ...], tuple[BlockChoice, ...]]


def polished(found: MeshSolution, table: ChoiceTable, job: Job) -> MeshSolution:
    """The plan after all small changes that make it quicker.

    Args:
        table: that the plan's choices are of.
    """
    work_left = _MOST_WORK
    step_work = found.candidate.num_actions + len(table.blocks)
    best = found
    plan: _Plan = found.layout.first_blocks, found.choices
    improved = True
    while improved:
        improved = False
        for changed in _changes(plan, table, job):
            if work_left < step_work:
                return best
            work_left -= step_work
            layout, prediction = _judged(changed, found, table, job)
            if prediction.fits and prediction.step_time_s < best.step_s * (1 - _TOLERANCE):
                best = replace(best, layout=layout, choices=changed[1], prediction=prediction)
                plan, improved = changed, True
                break
    return best


def _judged(plan: _Plan, found: MeshSolution, table: ChoiceTable, job: Job) -> tuple[Layout, Prediction]:
    firsts, choices = plan
    ends = [*firsts[1:], len(choices)]
    stages = [choices[first:end] for first, end in zip(firsts, ends, strict=True)]
    layout = layout_of(found.candidate, job, table, stages)
    return layout, predict(layout, job.cluster, job.memory_limit_bytes)


def _changes(plan: _Plan, table: ChoiceTable, job: Job) -> Iterator[_Plan]:
    firsts, choices = plan
    if job.first_blocks is None:
        for moved in _cuts_near(firsts, len(choices), job):
            yield moved, choices
    yield from ((firsts, other) for other in _options_near(firsts, choices, table))


def _cuts_near(firsts: Sequence[int], num_blocks: int, job: Job) -> Iterator[tuple[int, ...]]:
    """Cuts in which one stage begins a block earlier or later."""
    sizes = job.sizes(len(firsts))
    for stage in range(1, len(firsts)):
        for step in (-1, 1):
            moved = (*firsts[:stage], firsts[stage] + step, *firsts[stage + 1 :])
            if is_legal(moved, num_blocks, sizes):
                yield moved


def _options_near(
    firsts: Sequence[int], choices: tuple[BlockChoice, ...], table: ChoiceTable
) -> Iterator[tuple[BlockChoice, ...]]:
    """One block with another option; of blocks of a stage that are alike, the first stands for all."""
    ends = [*firsts[1:], len(choices)]
    for first, end in zip(firsts, ends, strict=True):
        seen: set[tuple[int, int]] = set()
        for block in range(first, end):
            kind, now = table.blocks[block], choices[block]
            if (kind, id(now)) in seen:
                continue
            seen.add((kind, id(now)))
            for other in table.kinds[kind]:
                same_words = (other.input_word, other.output_word) == (now.input_word, now.output_word)
                if other is not now and same_words:
                    yield (*choices[:block], other, *choices[block + 1 :])
