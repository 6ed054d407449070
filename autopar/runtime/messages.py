"""Which action of a schedule waits for which message, and the order of the messages between two ranks.

A message goes from a stage to its neighbour for one micro-batch: activations with the flow of the forward
pass, gradients against it. Between two ranks messages travel in one order per direction, that of the sender's
actions. The receiver derives the same order from the same list, so that no backend need match them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autopar.schedule.actions import Action, ActionKind

Schedule = Sequence[Sequence[Action]]
"""The actions of every rank, in order."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a stage gets from a neighbour for one micro-batch.

    Attributes:
        is_gradient: comes from the stage after and goes back; otherwise activations of the stage before.
        stage: that receives it.
        micro_batch: index within the step.
    """

    is_gradient: bool
    stage: int
    micro_batch: int


Traffic = Mapping[tuple[int, int], Sequence[Message]]
"""Messages by (sender, receiver) on the pipeline axis, in order."""


def needed(action: Action, num_stages: int) -> Message | None:
    """The message that an action waits for."""
    if action.kind is ActionKind.FORWARD:
        return Message(False, action.stage, action.micro_batch) if action.stage > 0 else None
    if action.kind is ActionKind.WEIGHT_BACKWARD or action.stage == num_stages - 1:
        return None
    return Message(True, action.stage, action.micro_batch)


def produced(action: Action, num_stages: int) -> Message | None:
    """The message that an action ends with."""
    if action.kind is ActionKind.FORWARD:
        return Message(False, action.stage + 1, action.micro_batch) if action.stage < num_stages - 1 else None
    if action.kind is ActionKind.WEIGHT_BACKWARD or action.stage == 0:
        return None
    return Message(True, action.stage - 1, action.micro_batch)


def traffic(schedule: Schedule, num_stages: int, rank_of: Callable[[int], int]) -> Traffic:
    """Messages from one rank to another, by (sender, receiver), in the order in which they are sent.

    Args:
        rank_of: stage -> rank on the pipeline axis. What a rank hands to itself is left out.
    """
    found: dict[tuple[int, int], list[Message]] = {}
    for sender, actions in enumerate(schedule):
        for action in actions:
            message = produced(action, num_stages)
            if message is not None and rank_of(message.stage) != sender:
                found.setdefault((sender, rank_of(message.stage)), []).append(message)
    return {ranks: tuple(messages) for ranks, messages in sorted(found.items())}
