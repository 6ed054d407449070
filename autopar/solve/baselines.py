"""The plans that people write by hand, each the best of its kind: what an answer is worth beside them.

* ``Megatron``: every stage the same number of layers, every block the quickest placement that keeps one word
  flowing between blocks (replicated, or sequence-parallel), ZeRO 0 or 1, 1F1B;
* ``data parallel``: the whole model on every device, ZeRO 0;
* ``FSDP``: ZeRO 3 over all devices.

One recompute word holds for all blocks. Only tables that the search has made already are looked at, and those
of one device's worth, which cost little.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from autopar.cost.choice import BlockChoice
from autopar.errors import CaptureError
from autopar.plan.decisions import Recompute, ScheduleName
from autopar.solve.candidate import BaselineFound, Candidate, ChoiceTable, Family, MeshSolution, Shortfall
from autopar.solve.candidates import candidates
from autopar.solve.mesh import best_of_tables, least_state_bytes
from autopar.solve.table_floor import TableFloor
from autopar.solve.why_not import does_not_fit

if TYPE_CHECKING:
    from autopar.solve.work_queue import Search

_WORDS = ("replicate", "sequence")
_MOST_SOLVED = 24


def baselines(state: Search, families: Sequence[Family]) -> list[Callable[[], BaselineFound]]:
    """What finds the best plan of every kind, each for itself.

    Args:
        families: legal ones, whatever the constraints leave of them.
    """
    flat = [f for f in families if f.pipeline == f.tensor == 1]
    data = [f for f in flat if state.floors.is_tabulated(f)] or flat[-1:]
    known = [f for f in families if state.floors.is_tabulated(f)]
    return [
        partial(_best, "Megatron", state, known or flat[-1:], (0, 1)),
        partial(_best, "data parallel", state, _with_smaller(data, flat), (0,)),
        partial(_best, "FSDP", state, _with_smaller(data, flat), (3,)),
    ]


def legal_plans(state: Search, found: Iterable[BaselineFound]) -> Iterator[MeshSolution]:
    """Of plans by hand, those that keep to all constraints."""
    if state.job.first_blocks is not None or state.job.stage_sizes:
        return
    for one in found:
        if one.solution is not None and one.solution.candidate in candidates(
            one.solution.candidate.family, state.space
        ):
            yield one.solution


def _with_smaller(data: Sequence[Family], flat: Sequence[Family]) -> list[Family]:
    """Also the smallest micro-batch, which may fit where others do not."""
    smallest = min(flat, key=lambda f: f.micro_batch, default=None)
    return list(data) + ([smallest] if smallest is not None and smallest not in data else [])


def _best(name: str, state: Search, families: Iterable[Family], levels: tuple[int, ...]) -> BaselineFound:
    """The quickest of the plans of a kind that fits."""
    best: tuple[MeshSolution, str] | None = None
    least: Shortfall | None = None
    settings = sorted(_settings(state, families, levels), key=lambda item: item[:3])
    for num_solved, (floor_s, _, candidate, index, table, word) in enumerate(settings):
        if best is not None and (floor_s >= best[0].step_s or num_solved >= _MOST_SOLVED):
            break
        if num_solved >= 2 * _MOST_SOLVED:
            break
        found = _solved(state, candidate, table)
        if isinstance(found, Shortfall):
            if least is None or found.missing_bytes < least.missing_bytes:
                least = found
        elif best is None or found.step_s < best[0].step_s:
            best = replace(found, table=index), word
    if best is not None:
        return BaselineFound(name, *best)
    if least is None:
        return BaselineFound(
            name, None, None, "no such plan that keeps to the constraints divides batch and layers evenly"
        )
    return BaselineFound(name, None, None, does_not_fit(least.missing_bytes))


def _settings(
    state: Search, families: Iterable[Family], levels: tuple[int, ...]
) -> Iterator[tuple[float, int, Candidate, int, ChoiceTable, str]]:
    """Every plan of a kind with a lower bound of its step, and the number of its table."""
    number = 0
    for family in families:
        try:
            tables = state.choices.tables(family.tensor, family.micro_batch)
        except CaptureError:
            continue
        for index, table in enumerate(tables):
            if uniform_cut(table, family.pipeline) is None:
                continue
            for word, uniform in _uniform(table):
                for level in levels if family.data > 1 else (0,):
                    candidate = Candidate(
                        family.pipeline,
                        family.tensor,
                        family.data,
                        family.num_micro_batches,
                        family.micro_batch,
                        (level,) * family.pipeline,
                        ScheduleName.ONE_F_ONE_B,
                    )
                    number += 1
                    floor_s = TableFloor((uniform,)).step_s(candidate, state.job)
                    yield floor_s, number, candidate, index, uniform, word


def _uniform(table: ChoiceTable) -> Iterator[tuple[str, ChoiceTable]]:
    """The table with one choice for every kind: one recompute word, one word between blocks."""
    recomputed = dict.fromkeys(str(c.recompute) for kind in table.kinds for c in kind)
    for recompute in recomputed:
        for flowing in _WORDS:
            kinds = []
            for index, kind in enumerate(table.kinds):
                wanted = _wanted_words(table, index, flowing)
                own = [c for c in kind if str(c.recompute) == recompute] or [
                    c for c in kind if c.recompute is Recompute.NONE
                ]
                meeting = [c for c in own or kind if (c.input_word, c.output_word) in wanted]
                if not meeting:
                    break
                kinds.append(tuple(_quickest(meeting)))
            if len(kinds) == len(table.kinds):
                yield recompute, replace(table, kinds=tuple(kinds))


def _wanted_words(table: ChoiceTable, kind: int, flowing: str) -> set[tuple[str, str]]:
    """Pairs of words that a kind may have: replicated, or with the flowing word on either side."""
    if flowing == "replicate":
        return {("replicate", "replicate")}
    repeated = Counter(table.blocks)[kind] > 1
    if repeated:
        return {(flowing, flowing)}
    return {("replicate", "replicate"), ("replicate", flowing), (flowing, "replicate"), (flowing, flowing)}


def _quickest(choices: Sequence[BlockChoice]) -> list[BlockChoice]:
    """The quickest choice of every pair of words."""
    best: dict[tuple[str, str], BlockChoice] = {}
    for choice in choices:
        words = choice.input_word, choice.output_word
        seconds = choice.forward_s + choice.backward_s
        if words not in best or seconds < best[words].forward_s + best[words].backward_s:
            best[words] = choice
    return list(best.values())


def uniform_cut(table: ChoiceTable, pipeline: int) -> tuple[int, ...] | None:
    """First blocks of stages with the same number of layers; None where they do not divide evenly."""
    kind, count = max(Counter(table.blocks).items(), key=lambda item: (item[1], -item[0]))
    layers = [block for block, own in enumerate(table.blocks) if own == kind]
    if pipeline == 1:
        return (0,)
    if count % pipeline:
        return None
    return (0, *(layers[stage * (count // pipeline)] for stage in range(1, pipeline)))


def _solved(state: Search, candidate: Candidate, table: ChoiceTable) -> MeshSolution | Shortfall:
    missing = least_state_bytes(state.choices.trainable_elements, candidate, state.job)
    if missing > state.job.memory_limit_bytes:
        return Shortfall(candidate, 0, missing - state.job.memory_limit_bytes)
    job = replace(state.job, first_blocks=uniform_cut(table, candidate.pipeline), stage_sizes=())
    return best_of_tables((table,), candidate, job)
