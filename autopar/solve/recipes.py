"""Simple ways of running a table: one word of recomputation for all blocks, stages of even times.

A recipe is no optimum, but it is a whole plan that the step model judges in milliseconds: good ones are found
among thousands of candidates before any of these is solved.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from autopar.cost.choice import BlockChoice
from autopar.cost.layout import Layout
from autopar.cost.prediction import Prediction, StageMemory
from autopar.cost.step import fitting_memory, predict, step_pieces
from autopar.plan.bounds import Bound
from autopar.plan.decisions import Recompute
from autopar.schedule.actions import stage_rank
from autopar.solve.candidate import Candidate, ChoiceTable, Job
from autopar.solve.chain_build import chosen_stages, layout_of, messages_s
from autopar.solve.cheapest_chain import cheapest_chains, least_by_words, unwound
from autopar.solve.light_cuts import are_long, light_cut
from autopar.solve.shifted_cuts import is_legal, shifted

# A byte of activations saved, and one of a parameter's state, is weighed against the time that it takes to
# make activations again, by this much.
_MEMORY_WEIGHTS = ((0.0, 0.0), (0.3, 0.0), (0.3, 0.3), (3.0, 3.0))
# Of more stages, cuts are not moved until they fit.
_MOST_STAGES_SHIFTED = 16
# Of an element with a gradient, where nothing divides it (AdamW, mixed precision).
_STATE_BYTES = 16


@dataclass(frozen=True, slots=True)
class Recipe:
    """One option of every block.

    Attributes:
        seconds: of every block, forward and backward.
        saved_bytes: of all blocks for one micro-batch.
        state_bytes: of all parameters, undivided.
    """

    options: tuple[int, ...]
    seconds: tuple[float, ...]
    saved_bytes: int
    state_bytes: int

    @property
    def total_s(self) -> float:
        """Of all blocks."""
        return sum(self.seconds)


@dataclass(frozen=True, slots=True)
class Tried:
    """A plan of a candidate that fits."""

    candidate: Candidate
    layout: Layout
    prediction: Prediction
    table: int

    @property
    def step_s(self) -> float:
        """Predicted."""
        return self.prediction.step_time_s

    @property
    def choices(self) -> tuple[BlockChoice, ...]:
        """Of every block, in order."""
        return tuple(choice for stage in self.layout.stages for choice in stage)


@dataclass(frozen=True, slots=True)
class _Fit:
    """A layout that fits.

    Attributes:
        memory: of every rank; empty: not known.
    """

    layout: Layout
    memory: tuple[StageMemory, ...] = ()


@dataclass(slots=True)
class Recipes:
    """The recipes of the tables of one tensor degree and micro-batch, for one job; the quicker first."""

    tables: Sequence[ChoiceTable]
    _made: list[list[Recipe]] | None = None
    _cuts: dict[tuple[int, int, int], tuple[int, ...]] = field(default_factory=dict)
    _fitting_ones: dict[tuple[Candidate, int | None], Tried | None] = field(default_factory=dict)
    _light_cuts: dict[tuple[object, ...], tuple[int, ...] | None] = field(default_factory=dict)

    def first_fitting(self, candidate: Candidate, job: Job, num_tables: int | None = None) -> Tried | None:
        """The best over the tables of the quickest recipe that fits.

        Args:
            num_tables: tables to try, those with the quickest recipes; None: all.
        """
        key = candidate, num_tables
        if key not in self._fitting_ones:
            self._fitting_ones[key] = self._first_fitting(candidate, job, num_tables)
        return self._fitting_ones[key]

    def _first_fitting(self, candidate: Candidate, job: Job, num_tables: int | None) -> Tried | None:
        best: Tried | None = None
        by_speed = sorted((r[0].total_s, index) for index, r in enumerate(self._recipes()) if r)
        for _, index in by_speed[:num_tables]:
            recipes = self._recipes()[index]
            tried = self._quickest_fitting(candidate, job, index, recipes)
            if tried is not None and (best is None or tried.step_s < best.step_s):
                best = tried
        return best

    def _quickest_fitting(
        self, candidate: Candidate, job: Job, index: int, recipes: Sequence[Recipe]
    ) -> Tried | None:
        """The quickest; else, if the leanest fits, the first on the way to it."""
        fit = self._fitting(candidate, job, index, 0)
        leanest = {min(range(len(recipes)), key=lambda number: lean(recipes[number])) for lean in _LEAN}
        for last in sorted(leanest - {0}):
            if fit is None and (fit := self._fitting(candidate, job, index, last)) is not None:
                between = (self._fitting(candidate, job, index, number) for number in range(1, last))
                fit = next((other for other in between if other is not None), fit)
        if fit is None:
            return None
        prediction = predict(fit.layout, job.cluster, job.memory_limit_bytes, fit.memory)
        return Tried(candidate, fit.layout, prediction, index)

    def _fitting(self, candidate: Candidate, job: Job, index: int, number: int) -> _Fit | None:
        """The plan of a recipe, if it fits; of several cuts, the quickest."""
        recipe, table = self._recipes()[index][number], self.tables[index]

        def layout_at(firsts: tuple[int, ...]) -> Layout:
            return layout_of(candidate, job, table, chosen_stages(table, firsts, recipe.options))

        if job.first_blocks is not None:
            return self._near(job.first_blocks, candidate, job, layout_at)
        even = self._even_cut(candidate, job, index, number)
        cuts = [even, with_ties_on_one_rank(even, candidate, table, job)]
        light = self._light_cut(even, candidate, job, index, number)
        if light is not None:
            cuts.append(light)
        near = (self._near(cut, candidate, job, layout_at) for cut in dict.fromkeys(cuts))
        found = [fit for fit in near if fit is not None]
        if len(found) < 2:
            return found[0] if found else None
        return min(found, key=lambda one: step_pieces(one.layout, job.cluster).step_s)

    def _near(
        self,
        firsts: tuple[int, ...],
        candidate: Candidate,
        job: Job,
        layout_at: Callable[[tuple[int, ...]], Layout],
    ) -> _Fit | None:
        """The plan of a cut, or of one near it, if it fits."""
        layout = layout_at(firsts)
        memory = fitting_memory(layout, job.cluster, job.memory_limit_bytes)
        if memory is not None:
            return _Fit(layout, memory)
        if job.first_blocks is not None or not 1 < candidate.num_stages <= _MOST_STAGES_SHIFTED:
            return None
        moved = shifted(firsts, sum(len(blocks) for blocks in layout.stages), job, layout_at)
        return None if moved is None else _Fit(moved)

    def _recipes(self) -> list[list[Recipe]]:
        if self._made is None:
            self._made = [
                sorted(dict.fromkeys(_recipes_of(table)), key=lambda recipe: recipe.total_s)
                for table in self.tables
            ]
        return self._made

    def _even_cut(self, candidate: Candidate, job: Job, index: int, number: int) -> tuple[int, ...]:
        """Stages of about even times under a recipe."""
        key = (index, number, candidate.num_stages)
        if key not in self._cuts:
            seconds, sizes = self._recipes()[index][number].seconds, job.sizes(candidate.num_stages)
            self._cuts[key] = even_cut(seconds, candidate.num_stages, sizes)
        return self._cuts[key]

    def _light_cut(
        self, even: tuple[int, ...], candidate: Candidate, job: Job, index: int, number: int
    ) -> tuple[int, ...] | None:
        """Stages that send little under a recipe, where those of even times send for long."""
        if candidate.pipeline == 1:
            return None
        key = (index, number, *_way_of_sending(candidate))
        if key not in self._light_cuts:
            recipe, table = self._recipes()[index][number], self.tables[index]
            options = zip(table.blocks, recipe.options, table.carried_bytes, strict=True)
            handed = [table.kinds[kind][option].output_bytes + carried for kind, option, carried in options]
            by_bytes = {num_bytes: messages_s(candidate, job, num_bytes) for num_bytes in set(handed)}
            sent_s = [[2 * by_bytes[num_bytes][at] for num_bytes in handed] for at in range(len(even) - 1)]
            sizes, num_micro_batches = job.sizes(len(even)), candidate.num_micro_batches
            is_worth_it = are_long(even, recipe.seconds, sent_s)
            self._light_cuts[key] = (
                light_cut(recipe.seconds, sent_s, num_micro_batches, sizes) if is_worth_it else None
            )
        return self._light_cuts[key]


def _way_of_sending(candidate: Candidate) -> tuple[object, ...]:
    """What the messages of a candidate's stages depend on."""
    schedule, order = (candidate.schedule, candidate.virtual), candidate.order
    return candidate.mesh, schedule, order, candidate.num_micro_batches


_LEAN: tuple[Callable[[Recipe], int], ...] = (
    lambda recipe: recipe.saved_bytes,
    lambda recipe: recipe.saved_bytes + recipe.state_bytes,
)


def even_cut(seconds: Sequence[float], num_stages: int, sizes: Sequence[Bound] = ()) -> tuple[int, ...]:
    """First blocks of stages whose times are about even, none of them empty.

    Args:
        sizes: of every stage, between what it may hold; empty: anything.
    """
    sizes = sizes or (Bound(1),) * num_stages
    sums = list(accumulate(seconds, initial=0.0))
    size, firsts = len(seconds), [0]
    for stage in range(1, num_stages):
        wanted = sums[-1] * stage / num_stages
        at = bisect_left(sums, wanted)
        if at > 0 and wanted - sums[at - 1] < sums[min(at, size)] - wanted:
            at -= 1
        own, after = sizes[stage - 1], sizes[stage:]
        most = firsts[-1] + (size if own.most is None else own.most)
        most_after = sum(size if bound.most is None else bound.most for bound in after)
        low = max(firsts[-1] + own.least, size - most_after)
        firsts.append(max(low, min(at, most, size - sum(bound.least for bound in after))))
    return tuple(firsts)


def with_ties_on_one_rank(
    firsts: tuple[int, ...], candidate: Candidate, table: ChoiceTable, job: Job
) -> tuple[int, ...]:
    """The cut, but for that the last stage, where it lies on the rank of the first, holds the last of the
    blocks that share a parameter with that one: ranks that hold copies have to add up their gradients.
    """
    last_stage = candidate.num_stages - 1
    last_rank = stage_rank(candidate.schedule, last_stage, candidate.pipeline, candidate.virtual)
    if candidate.pipeline == 1 or last_rank != 0:
        return firsts
    holders = [p.blocks[-1] for p in table.shared if p.blocks[0] < firsts[1] and p.blocks[-1] >= firsts[1]]
    moved, most = list(firsts), min([firsts[-1], *holders])
    for stage in range(last_stage, 0, -1):
        moved[stage] = min(moved[stage], most)
        most = moved[stage] - 1
    return tuple(moved) if is_legal(moved, len(table.blocks), job.sizes(len(firsts))) else firsts


def _recipes_of(table: ChoiceTable) -> Iterator[Recipe]:
    rate_s = _seconds_per_byte(table)
    weighed_s = [[(rate_s * c.saved_bytes, rate_s * _state_bytes(c)) for c in kind] for kind in table.kinds]
    for recompute in Recompute:
        for weights in _MEMORY_WEIGHTS:
            found = _cheapest(table, recompute, weighed_s, *weights)
            if found is not None:
                yield found


def _cheapest(
    table: ChoiceTable,
    recompute: Recompute,
    weighed_s: Sequence[Sequence[tuple[float, float]]],
    saved: float,
    state: float,
) -> Recipe | None:
    """The cheapest options of all blocks whose words meet, by time and weighed bytes.

    Args:
        weighed_s: per kind and option, what its saved bytes and its state are worth.
    """
    steps = []
    for kind, options_s in zip(table.kinds, weighed_s, strict=True):
        offered = [item for item in enumerate(kind) if item[1].recompute is recompute] or enumerate(kind)
        costs_s = [
            (index, c, saved * options_s[index][0] + state * options_s[index][1]) for index, c in offered
        ]
        steps.append(
            least_by_words(
                (index, (c.input_word, c.output_word), c.forward_s + c.backward_s + bytes_s)
                for index, c, bytes_s in costs_s
            )
        )
    reached = cheapest_chains(steps, table.blocks).get("replicate")
    if reached is None:
        return None
    options = unwound(reached[1])
    chosen = [table.kinds[kind][option] for kind, option in zip(table.blocks, options, strict=True)]
    seconds = tuple(c.forward_s + c.backward_s for c in chosen)
    saved_bytes, state_bytes = sum(c.saved_bytes for c in chosen), sum(_state_bytes(c) for c in chosen)
    return Recipe(options, seconds, saved_bytes, state_bytes)


def _state_bytes(choice: BlockChoice) -> int:
    return _STATE_BYTES * choice.trainable_elements


def _seconds_per_byte(table: ChoiceTable) -> float:
    """Of the forward pass by what it saves, over all kinds."""
    seconds = sum(min(c.forward_s for c in kind) for kind in table.kinds)
    saved = sum(max(c.saved_bytes for c in kind) for kind in table.kinds)
    return seconds / max(saved, 1)
