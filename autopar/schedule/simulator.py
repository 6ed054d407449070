"""Plays a schedule's actions with given times: a discrete-event simulation of one step of a pipeline.

An action starts when its rank has finished the one before it in its list and its input has arrived: the
forward of a stage needs the forward of the stage before; the backward (or its input half) needs its own
forward and the backward of the stage after; the weight half needs its input half. A message takes its time
but occupies neither rank (asynchronous sends); between two stages of one rank there is none.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from autopar.plan.decisions import ScheduleName
from autopar.schedule.actions import Action, ActionKind, schedule_actions


@dataclass(frozen=True, slots=True)
class Event:
    """One action as it was played.

    Attributes:
        rank: position on the pipeline axis.
    """

    rank: int
    action: Action
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """A step as it was played.

    Attributes:
        events: by rank, in the order in which the rank ran them.
        makespan_s: from the first start to the last end.
    """

    events: tuple[tuple[Event, ...], ...]
    makespan_s: float

    def busy_s(self, rank: int) -> float:
        """Time that a rank spends in actions."""
        return sum(event.end_s - event.start_s for event in self.events[rank])

    def idle_s(self, rank: int) -> float:
        """Time that a rank waits: the bubble."""
        return self.makespan_s - self.busy_s(rank)

    def end_s(self, rank: int) -> float:
        """When a rank finishes its last action."""
        return self.events[rank][-1].end_s


def simulate(
    actions: Sequence[Sequence[Action]],
    forward_s: Sequence[float],
    backward_s: Sequence[float],
    p2p_s: Sequence[float],
    weight_s: Sequence[float] | None = None,
) -> Timeline:
    """Plays ``actions``.

    Args:
        actions: one list per rank (``schedule_actions``).
        forward_s: seconds of one micro-batch's forward, per stage.
        backward_s: likewise, the whole backward.
        p2p_s: seconds of a message over the boundary between stage i and i + 1, if two ranks hold them.
        weight_s: per stage, the part of ``backward_s`` that the weight half of a split backward takes; needed
            only where ``actions`` split it.

    Raises:
        ValueError: the actions wait for each other, or for one that no rank runs; names the first of each
            rank.
    """
    order = _order_of(actions, len(forward_s))
    durations, delays = _times(order, forward_s, backward_s, p2p_s, weight_s)
    events: list[list[Event]] = [[] for _ in actions]
    ends_s = [0.0] * (len(order.ranks) + 1)
    free_s = [0.0] * len(actions)
    for i, (rank, code, needed, boundary) in enumerate(order.steps()):
        start_s = max(free_s[rank], ends_s[needed] + delays[boundary])
        ends_s[i] = free_s[rank] = end_s = start_s + durations[code]
        events[rank].append(Event(rank, actions[rank][len(events[rank])], start_s, end_s))
    return Timeline(tuple(tuple(rank_events) for rank_events in events), max(free_s, default=0.0))


def finish_times(
    name: ScheduleName,
    num_micro_batches: int,
    virtual: int,
    forward_s: Sequence[float],
    backward_s: Sequence[float],
    p2p_s: Sequence[float],
    weight_s: Sequence[float] | None = None,
) -> tuple[float, ...]:
    """When the last action of each stage ends: ``simulate`` of a schedule by name, without the events.

    The search asks this of many plans with one schedule, so the order of the actions is worked out once.
    """
    order = _order(name, len(forward_s), num_micro_batches, virtual)
    durations, delays = _times(order, forward_s, backward_s, p2p_s, weight_s)
    ends_s = [0.0] * (len(order.ranks) + 1)
    free_s = [0.0] * (len(forward_s) // virtual)
    for i, (rank, code, needed, boundary) in enumerate(order.steps()):
        start_s = ends_s[needed] + delays[boundary]
        if free_s[rank] > start_s:
            start_s = free_s[rank]
        ends_s[i] = free_s[rank] = start_s + durations[code]
    return tuple(ends_s[i] for i in order.last)


@dataclass(frozen=True, slots=True)
class _Order:
    """The actions of all ranks in an order in which each stands after whatever it needs.

    Attributes:
        ranks: who runs the action.
        codes: its time: index into the forwards, then (input) backwards, then weight halves of all stages.
        needed: position of the action on another stage that it waits for; -1: none.
        boundaries: over which that arrives; -1: no message, the stages share a rank.
        last: position of the last action of each stage.
        is_split: whether backward passes are split.
    """

    ranks: array[int]
    codes: array[int]
    needed: array[int]
    boundaries: array[int]
    last: array[int]
    is_split: bool

    def steps(self) -> Iterator[tuple[int, int, int, int]]:
        """Action by action."""
        return zip(self.ranks, self.codes, self.needed, self.boundaries, strict=True)


@lru_cache(maxsize=128)
def _order(name: ScheduleName, num_stages: int, num_micro_batches: int, virtual: int) -> _Order:
    return _order_of(schedule_actions(name, num_stages, num_micro_batches, virtual), num_stages)


def _times(
    order: _Order,
    forward_s: Sequence[float],
    backward_s: Sequence[float],
    p2p_s: Sequence[float],
    weight_s: Sequence[float] | None,
) -> tuple[list[float], list[float]]:
    """Seconds by ``codes`` and by ``boundaries``."""
    if not order.is_split:
        return [*forward_s, *backward_s], [*p2p_s, 0.0]
    assert weight_s is not None, "a split backward needs the time of its weight half"
    of_input = [whole - weights for whole, weights in zip(backward_s, weight_s, strict=True)]
    return [*forward_s, *of_input, *weight_s], [*p2p_s, 0.0]


def _order_of(actions: Sequence[Sequence[Action]], num_stages: int) -> _Order:
    """Runs through the ranks' lists, each as far as what it waits for has been run."""
    num_micro_batches = 1 + max((a.micro_batch for rank in actions for a in rank), default=0)
    rank_of = {a.stage: rank for rank, own in enumerate(actions) for a in own}
    local = [rank_of.get(s) == rank_of.get(s + 1) for s in range(num_stages)]
    # Position in the order of every forward, then of every backward, by stage and micro-batch.
    num_forwards = num_stages * num_micro_batches
    placed = [-1] * (3 * num_forwards)
    ranks, codes, needed, boundaries = array("i"), array("i"), array("i"), array("i")
    last = array("i", [-1] * num_stages)
    done = [0] * len(actions)
    waiting: dict[int, list[int]] = {}
    ready = list(range(len(actions)))[::-1]
    is_split = False
    nothing = len(placed)
    forward, of_weights = ActionKind.FORWARD, ActionKind.WEIGHT_BACKWARD
    add_rank, add_code, add_needed, add_boundary = (
        ranks.append,
        codes.append,
        needed.append,
        boundaries.append,
    )
    placed.append(-1)  # of nothing
    last_stage, count = num_stages - 1, 0
    while ready:
        rank = ready.pop()
        own = actions[rank]
        for position in range(done[rank], len(own)):
            kind, stage, micro_batch = own[position]
            here = stage * num_micro_batches + micro_batch
            if kind is forward:
                code, boundary = stage, stage - 1
                wanted = here - num_micro_batches if stage else nothing
            elif kind is of_weights:
                if placed[here + num_forwards] < 0:
                    break  # its first half stands later in this very list
                here += 2 * num_forwards
                code, boundary, wanted = 2 * num_stages + stage, -1, nothing
                is_split = True
            else:
                if placed[here] < 0:
                    break
                here += num_forwards
                code, boundary = num_stages + stage, stage
                wanted = here + num_micro_batches if stage < last_stage else nothing
            before = placed[wanted]
            if before < 0 and wanted != nothing:
                waiting.setdefault(wanted, []).append(rank)
                break
            placed[here] = last[stage] = count
            count += 1
            add_rank(rank)
            add_code(code)
            add_needed(before)
            add_boundary(-1 if before < 0 or local[boundary] else boundary)
            if here in waiting:
                ready.extend(waiting.pop(here))
        else:
            position = len(own)
        done[rank] = position
    stuck = [str(own[done[r]]) for r, own in enumerate(actions) if done[r] < len(own)]
    if stuck:
        raise ValueError(f"the schedule deadlocks; ranks wait at {', '.join(stuck)}")
    return _Order(ranks, codes, needed, boundaries, last, is_split)
