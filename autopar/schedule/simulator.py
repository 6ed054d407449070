"""Plays a schedule's actions with given times: a discrete-event simulation of one step of a pipeline.

An action starts when its rank has finished the one before it in its list and its input has arrived: the
forward of a stage needs the forward of the stage before, the backward needs its own forward and the backward
of the stage after. A message takes its time but occupies neither rank (asynchronous sends).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autopar.schedule.actions import Action, ActionKind

_NOT_YET = -1.0


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
    num_micro_batches = 1 + max((a.micro_batch for rank in actions for a in rank), default=0)
    forward_end_s = [_NOT_YET] * (len(forward_s) * num_micro_batches)
    backward_end_s = [_NOT_YET] * (len(forward_s) * num_micro_batches)
    last_stage = len(forward_s) - 1
    events: list[list[Event]] = [[] for _ in actions]
    free_s = [0.0] * len(actions)
    waiting: dict[tuple[int, int], list[int]] = {}
    ready = list(range(len(actions)))
    while ready:
        rank = ready.pop()
        now_s, played, own = free_s[rank], events[rank], actions[rank]
        for position in range(len(played), len(own)):
            action = own[position]
            stage, here = action.stage, action.stage * num_micro_batches + action.micro_batch
            forward = action.kind is ActionKind.FORWARD
            start_s = now_s
            if forward:
                is_ready = True
                if stage:
                    end_s = forward_end_s[here - num_micro_batches]
                    is_ready = end_s >= 0
                    start_s = max(start_s, end_s + p2p_s[stage - 1])
            else:
                is_ready = forward_end_s[here] >= 0
                if stage < last_stage:
                    end_s = backward_end_s[here + num_micro_batches]
                    is_ready = is_ready and end_s >= 0
                    start_s = max(start_s, end_s + p2p_s[stage])
            if not is_ready:
                # What it waits for runs on a neighbour, or (forward before backward) never on this rank.
                neighbour = stage - 1 if forward else stage + 1
                waiting.setdefault((neighbour, action.micro_batch), []).append(rank)
                break
            now_s = start_s + (forward_s if forward else backward_s)[stage]
            (forward_end_s if forward else backward_end_s)[here] = now_s
            played.append(Event(rank, action, start_s, now_s))
            if waiting:
                ready.extend(waiting.pop((stage, action.micro_batch), ()))
        free_s[rank] = now_s
    stuck = [str(actions[r][len(events[r])]) for r in range(len(actions)) if len(events[r]) < len(actions[r])]
    if stuck:
        raise ValueError(f"the schedule deadlocks; ranks wait at {', '.join(stuck)}")
    return Timeline(tuple(tuple(rank_events) for rank_events in events), max(free_s, default=0.0))
