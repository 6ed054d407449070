"""Pipeline schedules as one list of actions per rank: what the simulator plays, the runtime runs and people
see.

With m micro-batches over p stages:

* ``gpipe`` (Huang et al. 2019, arXiv 1811.06965): all forwards, then all backwards; m micro-batches in
flight. * ``1f1b`` (Narayanan et al. 2019, PipeDream, SOSP; flushed variant of Narayanan et al. 2021, arXiv
2104.04473,
  section 2.2.1): stage s runs min(m, p - s - 1) forwards, then one forward and one backward in turn, then
  what is left; min(m, p - s) micro-batches in flight.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from autopar.errors import UsageError
from autopar.plan.decisions import ScheduleName

SUPPORTED_SCHEDULES = (ScheduleName.GPIPE, ScheduleName.ONE_F_ONE_B)


class ActionKind(StrEnum):
    """What a rank does with a micro-batch.

    ``BACKWARD`` is the whole backward pass; zero-bubble schedules split it into the gradients of the stage's
    input, on which the stage before waits, and those of its weights, on which nobody does.
    """

    FORWARD = "F"
    BACKWARD = "B"
    INPUT_BACKWARD = "I"
    WEIGHT_BACKWARD = "W"


@dataclass(frozen=True, slots=True, order=True)
class Action:
    """One piece of work of a rank.

    Attributes:
        stage: index over all stages of the pipeline.
        micro_batch: index within the step.
    """

    kind: ActionKind
    stage: int
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind.value}{self.micro_batch}"


def check_schedule(name: ScheduleName, virtual: int = 1) -> None:
    """Refuses schedules that are not built yet.

    Raises:
        UsageError: names the supported ones.
    """
    if name not in SUPPORTED_SCHEDULES:
        supported = ", ".join(SUPPORTED_SCHEDULES)
        raise UsageError(f"schedule '{name}' is not supported yet; choose one of: {supported}")
    if virtual != 1:
        raise UsageError(
            f"schedule '{name}' holds one stage a rank, not virtual: {virtual}; write 'virtual: 1'"
        )


@lru_cache(maxsize=256)
def schedule_actions(
    name: ScheduleName, num_stages: int, num_micro_batches: int, virtual: int = 1
) -> tuple[tuple[Action, ...], ...]:
    """The actions of every rank, in the order in which it runs them.

    Args:
        num_stages: stages in all (ranks on the pipeline axis x virtual stages).
        virtual: stages per rank.

    Raises:
        UsageError: the schedule is not supported.
    """
    check_schedule(name, virtual)
    assert num_stages >= 1 and num_micro_batches >= 1
    if name is ScheduleName.GPIPE:
        return tuple(_gpipe(stage, num_micro_batches) for stage in range(num_stages))
    return tuple(_one_f_one_b(stage, num_stages, num_micro_batches) for stage in range(num_stages))


def in_flight(name: ScheduleName, num_stages: int, num_micro_batches: int, stage: int) -> int:
    """Most micro-batches whose saved activations ``stage`` holds at a time (closed forms of the
    schedules)."""
    check_schedule(name)
    if name is ScheduleName.GPIPE:
        return num_micro_batches
    return min(num_micro_batches, num_stages - stage)


def _gpipe(stage: int, num_micro_batches: int) -> tuple[Action, ...]:
    return tuple(
        Action(kind, stage, micro_batch)
        for kind in (ActionKind.FORWARD, ActionKind.BACKWARD)
        for micro_batch in range(num_micro_batches)
    )


def _one_f_one_b(stage: int, num_stages: int, num_micro_batches: int) -> tuple[Action, ...]:
    warm_up = min(num_micro_batches, num_stages - stage - 1)
    actions = [Action(ActionKind.FORWARD, stage, k) for k in range(warm_up)]
    for k in range(num_micro_batches):
        if warm_up + k < num_micro_batches:
            actions.append(Action(ActionKind.FORWARD, stage, warm_up + k))
        actions.append(Action(ActionKind.BACKWARD, stage, k))
    return tuple(actions)
