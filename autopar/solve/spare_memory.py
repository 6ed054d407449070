"""Memory that a plan leaves free, spent on quicker options of its blocks, rank by rank.

What a chain problem or a recipe gives to every stage alike, a rank of several stages may divide among them:
the time of all of its blocks counts, whichever they are, and its last stages hold the fewest micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from autopar.cost.choice import BlockChoice
from autopar.cost.layout import Layout
from autopar.cost.prediction import Prediction
from autopar.cost.step import fits, fitting_ranks, predict
from autopar.schedule.actions import rank_in_flight, rank_stages
from autopar.solve.candidate import ChoiceTable, Job

# Of what a rank has no room for all together, so many are tried one by one.
_MOST_SINGLES = 6


@dataclass(frozen=True, slots=True)
class _Step:
    """One block from one option to a quicker one.

    Attributes:
        saved_s: of a micro-batch.
        more_bytes: that the rank holds at most for it.
    """

    block: int
    before: BlockChoice
    after: BlockChoice
    saved_s: float
    more_bytes: int

    @property
    def rank(self) -> tuple[float, int]:
        """What brings most for its memory first; of equals, the later block."""
        return -self.saved_s / max(self.more_bytes, 1), -self.block


def better_spent(
    layout: Layout, prediction: Prediction, table: ChoiceTable, job: Job
) -> tuple[Layout, Prediction]:
    """A plan that fits, or the quicker one of ``with_memory_spent``."""
    other = with_memory_spent(layout, table, job)
    if other is layout:
        return layout, prediction
    spent = predict(other, job.cluster, job.memory_limit_bytes)
    is_better = spent.fits and spent.step_time_s < prediction.step_time_s
    return (other, spent) if is_better else (layout, prediction)


def with_memory_spent(layout: Layout, table: ChoiceTable, job: Job) -> Layout:
    """The layout with the options that fit into what it leaves free of each rank's memory, taken in the order
    of what they bring for it; itself where nothing fits, or nothing is quicker.

    Args:
        table: that the layout's choices are of.
    """
    chosen = [choice for stage in layout.stages for choice in stage]
    steps = [sorted(_steps(layout, table, rank), key=lambda s: s.rank) for rank in range(layout.pipeline)]
    if not any(steps) or not fits(layout, job.cluster, job.memory_limit_bytes):
        return layout
    low, high = [0] * len(steps), [len(own) for own in steps]
    while low != high:
        # Ranks do not share memory: the longest run of steps is looked for on all of them at once.
        tried = [(least + most + 1) // 2 for least, most in zip(low, high, strict=True)]
        taken = [own[:count] for own, count in zip(steps, tried, strict=True)]
        for rank, has_room in enumerate(_fitting(_after(layout, chosen, taken), job)):
            if low[rank] < high[rank] and has_room:
                low[rank] = tried[rank]
            elif low[rank] < high[rank]:
                high[rank] = tried[rank] - 1
    taken = [own[:count] for own, count in zip(steps, low, strict=True)]
    for single in range(1, _MOST_SINGLES + 1):
        more = [own[count + single : count + single + 1] for own, count in zip(steps, low, strict=True)]
        both = [
            [*own, *(step for step in next_ if step.before is _now(step.block, own, chosen))]
            for own, next_ in zip(taken, more, strict=True)
        ]
        if both != taken:
            fits_now = _fitting(_after(layout, chosen, both), job)
            taken = [own if ok else old for own, old, ok in zip(both, taken, fits_now, strict=True)]
    return _after(layout, chosen, taken)


def _now(block: int, taken: Sequence[_Step], chosen: Sequence[BlockChoice]) -> BlockChoice:
    """The option of a block after some steps."""
    return next((step.after for step in reversed(taken) if step.block == block), chosen[block])


def _steps(layout: Layout, table: ChoiceTable, rank: int) -> Iterator[_Step]:
    """Of every block of a rank, the ways to its quicker options that cost more and more memory."""
    own = rank_stages(layout.schedule, rank, layout.pipeline, layout.virtual)
    moments = rank_in_flight(
        layout.schedule, len(layout.stages), layout.num_micro_batches, rank, layout.virtual
    )
    firsts = layout.first_blocks
    known: dict[tuple[int, int], list[BlockChoice]] = {}
    for position, stage in enumerate(own):
        flight = max(held[position] for held in moments)
        for block, now in enumerate(layout.stages[stage], firsts[stage]):
            key = table.blocks[block], id(now)
            if key not in known:
                known[key] = _ladder(now, table.kinds[table.blocks[block]])
            for before, after in zip((now, *known[key]), known[key], strict=False):
                more_bytes = flight * (after.saved_bytes - before.saved_bytes)
                yield _Step(block, before, after, _seconds(before) - _seconds(after), more_bytes)


def _ladder(now: BlockChoice, kind: Sequence[BlockChoice]) -> list[BlockChoice]:
    """From an option to quicker ones that hold the same parameters and hand over the same: those that no two
    others together beat, the least memory first."""
    alike = [
        other
        for other in kind
        if (other.input_word, other.output_word, other.output_bytes, other.parameters)
        == (now.input_word, now.output_word, now.output_bytes, now.parameters)
    ]
    found: list[BlockChoice] = []
    at = now
    while quicker := [other for other in alike if _seconds(other) < _seconds(at)]:
        at = max(quicker, key=lambda other: (_gain(at, other), -other.saved_bytes))
        found.append(at)
    return found


def _gain(one: BlockChoice, other: BlockChoice) -> float:
    """Seconds a byte."""
    return (_seconds(one) - _seconds(other)) / max(other.saved_bytes - one.saved_bytes, 1)


def _seconds(choice: BlockChoice) -> float:
    return choice.forward_s + choice.backward_s


def _after(layout: Layout, chosen: Sequence[BlockChoice], taken: Sequence[Sequence[_Step]]) -> Layout:
    """The layout after steps on every rank."""
    choices = list(chosen)
    for own in taken:
        for step in own:
            choices[step.block] = step.after
    firsts = layout.first_blocks
    ends = (*firsts[1:], len(choices))
    stages = tuple(tuple(choices[first:end]) for first, end in zip(firsts, ends, strict=True))
    return replace(layout, stages=stages)


def _fitting(layout: Layout, job: Job) -> list[bool]:
    return list(fitting_ranks(layout, job.cluster, job.memory_limit_bytes))
