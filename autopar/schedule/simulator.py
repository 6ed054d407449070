"""Plays a schedule's actions with given times: a discrete-event simulation of one step of a pipeline.

An action starts when its rank has finished the one before it in its list and its input has arrived: the
forward of a stage needs the forward of the stage before, the backward needs its own forward and the backward
of the stage after. A message takes its time but occupies neither rank (asynchronous sends).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autopar.schedule.actions import Action, ActionKind


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
) -> Timeline:
    """Plays ``actions``.

    Args:
        actions: one list per rank (``schedule_actions``).
        forward_s: seconds of one micro-batch's forward, per stage.
        backward_s: likewise, backward.
        p2p_s: seconds of a message over the boundary between stage i and i + 1.

    Raises:
        ValueError: the actions wait for each other, or for one that no rank runs; names the first of each
        rank.
    """
    last_stage = len(forward_s) - 1
    ends: dict[tuple[ActionKind, int, int], float] = {}
    events: list[list[Event]] = [[] for _ in actions]
    free_s = [0.0] * len(actions)
    done = [0] * len(actions)
    waiting: dict[tuple[ActionKind, int, int], list[int]] = {}
    ready = list(range(len(actions)))
    while ready:
        rank = ready.pop()
        while done[rank] < len(actions[rank]):
            action = actions[rank][done[rank]]
            start_s = free_s[rank]
            missing = None
            for needed, delay_s in _needs(action, last_stage, p2p_s):
                end_s = ends.get(needed)
                if end_s is None:
                    missing = needed
                    break
                start_s = max(start_s, end_s + delay_s)
            if missing is not None:
                waiting.setdefault(missing, []).append(rank)
                break
            forward = action.kind is ActionKind.FORWARD
            free_s[rank] = start_s + (forward_s if forward else backward_s)[action.stage]
            key = (action.kind, action.stage, action.micro_batch)
            ends[key] = free_s[rank]
            events[rank].append(Event(rank, action, start_s, free_s[rank]))
            done[rank] += 1
            ready.extend(waiting.pop(key, ()))
    stuck = [str(actions[r][done[r]]) for r in range(len(actions)) if done[r] < len(actions[r])]
    if stuck:
        raise ValueError(f"the schedule deadlocks; ranks wait at {', '.join(stuck)}")
    return Timeline(tuple(tuple(rank_events) for rank_events in events), max(free_s, default=0.0))


def _needs(
    action: Action, last_stage: int, p2p_s: Sequence[float]
) -> tuple[tuple[tuple[ActionKind, int, int], float], ...]:
    stage, k = action.stage, action.micro_batch
    if action.kind is ActionKind.FORWARD:
        return (((ActionKind.FORWARD, stage - 1, k), p2p_s[stage - 1]),) if stage else ()
    own = ((ActionKind.FORWARD, stage, k), 0.0)
    if stage == last_stage:
        return (own,)
    return (own, ((ActionKind.BACKWARD, stage + 1, k), p2p_s[stage]))
