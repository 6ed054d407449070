"""Paths through a schedule, read off its actions: no step is shorter than any of them, whatever its stages
take.

Rank r runs its actions one after the other. Before its first, a micro-batch has come forward through the
stages before (*lead*). Between the forward of micro-batch k on stage s and its backward, the micro-batch
passes all later stages forwards and backwards: where that takes longer than what rank r does meanwhile, the
path takes this *excursion* instead. After its last backward, the gradient goes back to the first stage
(*tail*). With n(X, Y) the actions of rank r between X and Y, in seconds,

    end >= Σ_{i<s_0} F_i + busy_r + Σ over excursions (Σ_{i>s} (F_i + I_i) - n(F_s(k), I_s(k)))

and the same with the tail

    end_0 >= ... + Σ_{i<s} I_i

holds for all disjoint excursions, because each piece is a chain of actions that wait for each other. A rank
of several stages synchronises the gradients of one after the other: where a path ends with the first of them
to end, all its stages are synchronised after it. The best
are those of the first micro-batch, when the pipeline fills, and of the last, when it runs empty. How many
actions lie between depends on the ends of the list alone, so that of a long step only a short one with the
same ends is looked at. A path is linear in the stages' times: which stage is slow, and what each takes, is
left to who uses it. With even stages the longest of these paths is the step itself but for a hundredth.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from autopar.plan.decisions import ScheduleName
from autopar.schedule.actions import Action, ActionKind, rank_stages, schedule_actions
from autopar.schedule.interleaved import interleaved, micro_batch_groups
from autopar.schedule.simulator import Event, simulate

# Rounds of a short step that has the ends of a long one.
_ROUNDS = 4
_GROUPS = 3
# Seconds of forward, input half (or whole backward) and weight half by which the best excursions are told.
_USUAL = ((1.0, 1.0, 1.0), (1.0, 2.0, 1.0))
_ROW = {
    ActionKind.FORWARD: 0,
    ActionKind.BACKWARD: 1,
    ActionKind.INPUT_BACKWARD: 1,
    ActionKind.WEIGHT_BACKWARD: 2,
}
Counts = NDArray[np.int64]
Row = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Path:
    """A chain of actions that wait for each other, by how often each occurs.

    Attributes:
        times: forwards, backwards (or their input halves) and weight halves, by stage: (3, stages).
        messages: by boundary between stages.
        end: stage whose last action is the path's.
        later: other stages of its rank, which end and are synchronised after it.
    """

    times: Counts
    messages: Counts
    end: int
    later: tuple[int, ...] = ()

    def seconds(self, stages_s: NDArray[np.float64], messages_s: Sequence[float]) -> float:
        """Of stages with the given times, (3, stages), and messages."""
        return float((self.times * stages_s).sum() + (self.messages * np.asarray(messages_s)).sum())


@lru_cache(maxsize=512)
def rank_paths(name: ScheduleName, pipeline: int, num_micro_batches: int, virtual: int) -> tuple[Path, ...]:
    """Of every rank the longest paths of a schedule, judged at even stages."""
    lists, played = _with_the_same_ends(name, pipeline, num_micro_batches, virtual)
    num_stages = pipeline * virtual
    found: dict[tuple[bytes, int, tuple[int, ...]], Path] = {}
    for rank, own in enumerate(lists):
        stages = rank_stages(name, rank, pipeline, virtual)
        repeated = (num_micro_batches - played, stages)
        for path in _of_rank(own, num_stages, stages, repeated):
            found.setdefault((path.times.tobytes(), path.end, path.later), path)
    return tuple(found.values())


def critical_path(
    name: ScheduleName, virtual: int, num_micro_batches: int, stages_s: Row, messages_s: Sequence[float]
) -> Path:
    """The path that is the step, of stages with given times, (3, stages): forward, input half (or whole
    backward) and weight half."""
    num_stages = stages_s.shape[1]
    lists = schedule_actions(name, num_stages, num_micro_batches, virtual)
    played = simulate(lists, stages_s[0], stages_s[1] + stages_s[2], messages_s, stages_s[2]).events
    ends: dict[tuple[int, int, int], Event] = {}
    before: dict[tuple[int, int, int], Event | None] = {}
    for events in played:
        for number, event in enumerate(events):
            key = _ROW[event.action.kind], event.action.stage, event.action.micro_batch
            ends[key], before[key] = event, events[number - 1] if number else None
    path = _nothing(num_stages)
    last: Event | None = max((events[-1] for events in played), key=lambda event: event.end_s)
    assert last is not None
    end = last.action.stage
    while last is not None:
        row, stage = _ROW[last.action.kind], last.action.stage
        path.times[row, stage] += 1
        previous = before[row, stage, last.action.micro_batch]
        other = stage - 1 if row == 0 else stage + 1
        waited = ends.get((row, other, last.action.micro_batch)) if row < 2 else None
        # Whichever it was that it waited for: what ends later, with its message.
        boundary = min(stage, other)
        is_sent = waited is not None and waited.rank != last.rank
        arrived_s = waited.end_s + (messages_s[boundary] if is_sent else 0.0) if waited is not None else 0.0
        if waited is not None and (previous is None or arrived_s > previous.end_s):
            path.messages[boundary] += is_sent
            last = waited
        else:
            last = previous
    return Path(path.times, path.messages, end)


def _with_the_same_ends(
    name: ScheduleName, pipeline: int, num_micro_batches: int, virtual: int
) -> tuple[Sequence[Sequence[Action]], int]:
    """The actions of every rank of a step that may be shorter, and its micro-batches."""
    if name is ScheduleName.INTERLEAVED:
        groups = micro_batch_groups(pipeline, num_micro_batches)
        if len(groups) > 2 * _GROUPS:
            groups = (*groups[:_GROUPS], *groups[-_GROUPS:])
        return [interleaved(rank, pipeline, groups, virtual) for rank in range(pipeline)], sum(groups)
    played = num_micro_batches
    if name is not ScheduleName.GPIPE:
        played = min(played, _ROUNDS * pipeline + 2)
    return schedule_actions(name, pipeline * virtual, played, virtual), played


@dataclass(frozen=True, slots=True)
class _Excursion:
    """From an action to another of the same rank by way of the later stages, and what that adds."""

    start: int
    end: int
    path: Path


def _of_rank(
    own: Sequence[Action], num_stages: int, stages: Sequence[int], repeated: tuple[int, Sequence[int]]
) -> Iterator[Path]:
    busy = _counted(own, num_stages)
    more, where = repeated
    is_split = own[-1].kind is ActionKind.WEIGHT_BACKWARD
    for stage in where:
        busy[: 3 if is_split else 2, stage] += more
    lead = np.zeros_like(busy)
    lead[0, : own[0].stage] = 1
    sent = np.zeros(max(num_stages - 1, 0), np.int64)
    sent[: own[0].stage] = 1
    last = max(n for n, action in enumerate(own) if _ROW[action.kind] == 1)
    after = _counted(own[last + 1 :], num_stages)
    first_stage = own[last].stage
    tail = np.zeros_like(busy)
    tail[1, :first_stage] = 1
    tail[2, 0] = is_split and first_stage > 0
    returned = sent.copy()
    returned[:first_stage] += 1
    ways = [_nothing(num_stages), *_excursions(own, num_stages, stages, len(own))]
    for added in ways:
        yield Path(lead + busy + added.times, sent + added.messages, own[-1].stage)
        yield Path(lead + busy - after + tail + added.times, returned + added.messages, 0)
    ends = {action.stage: n for n, action in enumerate(own)}
    first = min(ends, key=ends.__getitem__)
    later = tuple(sorted(stage for stage in ends if stage != first))
    if later and len(stages) < num_stages:  # a rank that holds all stages synchronises them as one
        after = _counted(own[ends[first] + 1 :], num_stages)
        for added in (_nothing(num_stages), *_excursions(own, num_stages, stages, ends[first])):
            yield Path(lead + busy - after + added.times, sent + added.messages, first, later)


def _excursions(own: Sequence[Action], num_stages: int, stages: Sequence[int], until: int) -> Iterator[Path]:
    """The best ways of leaving the rank and coming back, once or twice, by a position in its list."""
    position = {(_ROW[a.kind], a.stage, a.micro_batch): n for n, a in enumerate(own)}
    micro_batches = [a.micro_batch for a in own]
    early, late = min(micro_batches), max(micro_batches)
    away = [stage for stage in stages if stage < num_stages - 1]
    firsts = [_excursion(own, num_stages, position, stage, early) for stage in away]
    lasts = [_excursion(own, num_stages, position, stage, late) for stage in away]
    firsts, lasts = ([e for e in found if e.end <= until] for found in (firsts, lasts))
    for usual in _USUAL:
        one, other = _best(firsts, usual), _best(lasts, usual)
        if one is not None and other is not None and one.end <= other.start:
            yield _joined((one.path, other.path))
        for single in (one, other):
            if single is not None:
                yield single.path


def _excursion(
    own: Sequence[Action],
    num_stages: int,
    position: dict[tuple[int, int, int], int],
    stage: int,
    micro_batch: int,
) -> _Excursion:
    start, end = position[0, stage, micro_batch], position[1, stage, micro_batch]
    times = -_counted(own[start + 1 : end], num_stages)
    times[:2, stage + 1 :] += 1
    messages = np.zeros(max(num_stages - 1, 0), np.int64)
    messages[stage:] = 2
    return _Excursion(start, end, Path(times, messages, stage))


def _best(excursions: Iterable[_Excursion], usual: tuple[float, ...]) -> _Excursion | None:
    """The one that adds most, if any adds something."""
    weights = np.array(usual)[:, None]
    gains = [(float((e.path.times * weights).sum()), e) for e in excursions]
    best = max(gains, key=lambda gain: gain[0], default=None)
    return best[1] if best is not None and best[0] > 0 else None


def _joined(paths: Sequence[Path]) -> Path:
    return Path(sum(p.times for p in paths), sum(p.messages for p in paths), paths[-1].end)  # type: ignore[arg-type]


def _nothing(num_stages: int) -> Path:
    return Path(np.zeros((3, num_stages), np.int64), np.zeros(max(num_stages - 1, 0), np.int64), 0)


def _counted(actions: Iterable[Action], num_stages: int) -> Counts:
    counts = np.zeros((3, num_stages), np.int64)
    for action in actions:
        counts[_ROW[action.kind], action.stage] += 1
    return counts
