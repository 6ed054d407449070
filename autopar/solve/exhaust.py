"""Going through all cuts of a chain and all ways of its stages, with the simulated step as the judge.

Cuts are built stage by stage; one is dropped as soon as its slowest rank alone, or the schedule played with
every stage's least times, is no quicker than the best plan known. What is left is tried way by way. The work
is limited: where it ends early, the answer says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from autopar.cost.layout import Layout
from autopar.cost.prediction import Prediction
from autopar.cost.step import predict
from autopar.schedule.actions import rank_stages, stage_rank
from autopar.schedule.simulator import finish_times
from autopar.solve.candidate import Candidate, ChoiceTable, Job
from autopar.solve.chain_build import chosen_stages, layout_of
from autopar.solve.fronts import Fronts, Way
from autopar.solve.stage_floor import StageFloors

_MOST_CUTS = 2_000
_NODE_WORK = 10
_STAGE_WORK = 10
_PREDICT_WORK = 300
_FRONT_WORK = 300


@dataclass(frozen=True, slots=True)
class Outcome:
    """What going through everything brought.

    Attributes:
        layout: the best that was found; None where nothing beats what was known.
        complete: whether everything was gone through or ruled out.
        work: done, in about the time of playing an action of a schedule.
    """

    layout: Layout | None
    options: tuple[int, ...]
    prediction: Prediction | None
    complete: bool
    work: int


class Exhaust:
    """The cuts and ways of one candidate with one table."""

    def __init__(
        self,
        table: ChoiceTable,
        candidate: Candidate,
        job: Job,
        fronts: Fronts,
        floors: dict[int, StageFloors],
        send_s: Callable[[int], list[float]],
        most_work: int,
    ) -> None:
        self._table, self._candidate, self._job = table, candidate, job
        self._fronts, self._floors, self._send_s = fronts, floors, send_s
        self._ranks = [
            rank_stages(candidate.schedule, rank, candidate.pipeline, candidate.virtual)
            for rank in range(candidate.pipeline)
        ]
        self._rank_of = [
            stage_rank(candidate.schedule, s, candidate.pipeline, candidate.virtual)
            for s in range(candidate.num_stages)
        ]
        least_sent = min((c.output_bytes for kind in table.kinds for c in kind), default=0)
        self._least_message_s = send_s(least_sent)
        self._sizes = job.sizes(candidate.num_stages)
        self._play_work = candidate.num_actions
        self._best_s = float("inf")
        self._found: tuple[Layout, tuple[int, ...], Prediction] | None = None
        self._work, self._most_work = 0, most_work
        self._complete = True

    @property
    def _is_spent(self) -> bool:
        return self._work + self._fronts.num_tried * _FRONT_WORK > self._most_work

    def run(self, best_s: float) -> Outcome:
        """Looks for what beats ``best_s``."""
        self._best_s = best_s
        cuts: list[tuple[float, tuple[int, ...]]] = []
        for cut in self._cuts((), [0.0] * self._candidate.pipeline):
            floor_s = self._cut_floor_s(cut)
            if floor_s < self._best_s:
                cuts.append((floor_s, cut))
            if self._is_spent or len(cuts) > _MOST_CUTS:
                self._complete = False
                break
        for floor_s, cut in sorted(cuts):
            if floor_s >= self._best_s:
                break
            if self._is_spent:
                self._complete = False
                break
            self._try(cut)
        layout, options, prediction = self._found or (None, (), None)
        return Outcome(
            layout, options, prediction, self._complete, self._work + self._fronts.num_tried * _FRONT_WORK
        )

    def _cuts(self, before: tuple[int, ...], loads: list[float]) -> Iterator[tuple[int, ...]]:
        """First blocks of all stages, of cuts whose ranks are not too slow by themselves."""
        stage, size = len(before), len(self._table.blocks)
        num_stages = self._candidate.num_stages
        pinned = self._job.first_blocks
        if stage == num_stages:
            if not self._may_hold(stage - 1, size - before[-1]):
                return
            if self._pays(stage - 1, before[-1], size, loads) is not None:
                yield before
            return
        if stage == 0:
            yield from self._cuts((0,), loads)
            return
        for first in range(before[-1] + 1, size - (num_stages - stage) + 1):
            if pinned is not None and first != pinned[stage]:
                continue
            if not self._may_hold(stage - 1, first - before[-1]):
                continue
            self._work += _NODE_WORK
            if self._is_spent:
                self._complete = False
                return
            paid = self._pays(stage - 1, before[-1], first, loads)
            if paid is not None:
                yield from self._cuts((*before, first), paid)
            elif self._is_too_long(stage - 1, before[-1], first):
                break

    def _may_hold(self, stage: int, num_blocks: int) -> bool:
        return not self._sizes or self._sizes[stage].holds(num_blocks)

    def _pays(self, stage: int, first: int, end: int, loads: list[float]) -> list[float] | None:
        """Loads of the ranks with one stage more; None where its rank alone is too slow."""
        floor = self._floors[self._candidate.zero[stage]].of(first, end)
        rank = self._rank_of[stage]
        load_s = loads[rank] + floor.forward_s + floor.backward_s
        busy_s = load_s * self._candidate.num_micro_batches / self._job.cluster.device.time_share
        if busy_s + floor.update_s >= self._best_s:
            return None
        return [*loads[:rank], load_s, *loads[rank + 1 :]]

    def _is_too_long(self, stage: int, first: int, end: int) -> bool:
        """Whether a segment is too slow by its blocks alone, as all are that it begins."""
        floor = self._floors[self._candidate.zero[stage]].of(first, end)
        own_s = floor.forward_s + floor.backward_s - floor.extra_s
        busy_s = own_s * self._candidate.num_micro_batches / self._job.cluster.device.time_share
        return busy_s >= self._best_s

    def _cut_floor_s(self, cut: Sequence[int]) -> float:
        """The step with every stage at its least."""
        self._work += _STAGE_WORK * len(cut)
        found = [self._least(stage, first, end) for stage, first, end in self._stages(cut)]
        if any(least is None for least in found):
            return float("inf")
        return self._step_s([least for least in found if least is not None], self._least_message_s)

    def _least(self, stage: int, first: int, end: int) -> tuple[float, ...] | None:
        """Least forward, input half, weight half, synchronisation and update; None where nothing fits."""
        floor = self._floors[self._candidate.zero[stage]].of(first, end)
        ways = self._fronts.of(stage, first, end)
        if ways is None:
            input_s = floor.backward_s - floor.weight_s
            return floor.forward_s, input_s, floor.weight_s, floor.sync_s, floor.update_s
        if not ways:
            return None
        return (
            min(w.forward_s for w in ways),
            min(w.backward_s - w.weight_s for w in ways),
            min(w.weight_s for w in ways),
            min(w.sync_s for w in ways),
            min(w.update_s for w in ways),
        )

    def _stages(self, cut: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        ends = [*cut[1:], len(self._table.blocks)]
        for stage, (first, end) in enumerate(zip(cut, ends, strict=True)):
            yield stage, first, end

    def _step_s(self, stages: Sequence[tuple[float, ...]], messages_s: Sequence[float]) -> float:
        """A step of stages with the given times: no more than ``predict`` says of them."""
        self._work += self._play_work
        candidate, share = self._candidate, self._job.cluster.device.time_share
        ends_s = finish_times(
            candidate.schedule,
            candidate.num_micro_batches,
            candidate.virtual,
            [s[0] for s in stages],
            [s[1] + s[2] for s in stages],
            messages_s,
            [s[2] for s in stages],
        )
        shared = share > 1 and candidate.pipeline > 1
        finished_s = max(
            max(ends_s[stage] / (share if shared else 1) + stages[stage][3] for stage in own)
            for own in self._ranks
        )
        return finished_s + max(sum(stages[stage][4] for stage in own) for own in self._ranks)

    def _try(self, cut: Sequence[int]) -> None:
        """All ways of a cut that may beat the best."""
        fronts = [self._fronts.of(*stage) for stage in self._stages(cut)]
        if any(ways is None for ways in fronts):
            self._complete = False
            return
        least = [self._least(*stage) for stage in self._stages(cut)]
        assert all(found is not None for found in least)
        self._try_ways(
            cut, [ways or () for ways in fronts], (), [found for found in least if found is not None]
        )

    def _try_ways(
        self,
        cut: Sequence[int],
        fronts: Sequence[tuple[Way, ...]],
        taken: tuple[Way, ...],
        times: list[tuple[float, ...]],
    ) -> None:
        if self._is_spent:
            self._complete = False
            return
        stage = len(taken)
        if stage == len(fronts):
            if taken[-1].output_word == "replicate":
                self._judge(cut, taken)
            return
        word = taken[-1].output_word if taken else "replicate"
        for way in fronts[stage]:
            if way.input_word != word:
                continue
            input_s = way.backward_s - way.weight_s
            own = (way.forward_s, input_s, way.weight_s, way.sync_s, way.update_s)
            chosen = [*times[:stage], own, *times[stage + 1 :]]
            if len(fronts[stage]) > 1 and self._step_s(chosen, self._least_message_s) >= self._best_s:
                continue
            self._try_ways(cut, fronts, (*taken, way), chosen)

    def _judge(self, cut: Sequence[int], taken: Sequence[Way]) -> None:
        self._work += self._play_work + _PREDICT_WORK
        options = tuple(option for way in taken for option in way.options)
        layout = layout_of(self._candidate, self._job, self._table, chosen_stages(self._table, cut, options))
        prediction = predict(layout, self._job.cluster, self._job.memory_limit_bytes)
        if prediction.fits and prediction.step_time_s < self._best_s:
            self._best_s = prediction.step_time_s
            self._found = layout, options, prediction
