"""What one rank does in a pass over a schedule, worked out once for every number of micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autopar.runtime.messages import Message, Schedule, Traffic, needed, traffic
from autopar.schedule.actions import Action, ActionKind


@dataclass(frozen=True, slots=True)
class Script:
    """A pass over a schedule, for one rank.

    Attributes:
        actions: in order.
        awaited: the message that each of them waits for.
        traffic: all messages between ranks.
        split: stages whose backward pass comes in two halves.
    """

    actions: tuple[Action, ...]
    awaited: tuple[Message | None, ...]
    traffic: Traffic
    split: frozenset[int]


def make_script(schedule: Schedule, rank: int, num_stages: int, rank_of: Callable[[int], int]) -> Script:
    """The script of a rank.

    Args:
        rank: on the pipeline axis.
        num_stages: of the whole pipeline.
        rank_of: stage -> rank on the pipeline axis.
    """
    actions = tuple(schedule[rank])
    return Script(
        actions=actions,
        awaited=tuple(needed(action, num_stages) for action in actions),
        traffic=traffic(schedule, num_stages, rank_of),
        split=frozenset(x.stage for x in actions if x.kind is ActionKind.WEIGHT_BACKWARD),
    )


def forward_only(schedule: Schedule) -> Schedule:
    """The forward passes of a schedule, in its order."""
    return [[x for x in actions if x.kind is ActionKind.FORWARD] for actions in schedule]
