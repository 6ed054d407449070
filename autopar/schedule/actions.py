"""Pipeline schedules as one list of actions per rank: what the simulator plays, the runtime runs and people
see. Each family of schedules has a file of its own; this one says which there are and reads off them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from autopar.errors import UsageError
from autopar.plan.decisions import ScheduleName
from autopar.schedule.action import Action, ActionKind
from autopar.schedule.flushed import gpipe, one_f_one_b
from autopar.schedule.interleaved import interleaved, micro_batch_groups
from autopar.schedule.zero_bubble import zb_h1, zb_v

__all__ = [
    "SPLIT_BACKWARD",
    "SUPPORTED_SCHEDULES",
    "Action",
    "ActionKind",
    "check_schedule",
    "in_flight",
    "rank_in_flight",
    "rank_stages",
    "schedule_actions",
    "stage_rank",
]

SUPPORTED_SCHEDULES = tuple(ScheduleName)

_STEADY_GROUPS = 4

SPLIT_BACKWARD = (ScheduleName.ZERO_BUBBLE, ScheduleName.ZBV)
"""Schedules that run the two halves of a backward pass at different times."""


def check_schedule(name: ScheduleName, virtual: int) -> None:
    """Refuses a number of stages per rank that a schedule does not run.

    Raises:
        UsageError: says which number it runs.
    """
    if name is ScheduleName.ZBV and virtual != 2:
        raise UsageError(f"schedule 'zbv' runs two stages on each rank, not {virtual}; write 'virtual: 2'")
    if name is ScheduleName.INTERLEAVED and virtual < 2:
        raise UsageError(
            f"schedule 'interleaved' runs several stages on each rank, not {virtual}; write 'virtual: 2' or "
            "more, or 'schedule: 1f1b'"
        )
    if name not in (ScheduleName.ZBV, ScheduleName.INTERLEAVED) and virtual != 1:
        raise UsageError(
            f"schedule '{name}' runs one stage on each rank, not {virtual}; write 'virtual: 1', or "
            "'schedule: interleaved'"
        )


def stage_rank(name: ScheduleName, stage: int, pipeline: int, virtual: int = 1) -> int:
    """Position on the pipeline axis of the rank that holds a stage.

    Stages go round the ranks; in ``zbv`` down and up again, so that rank r holds stages r and 2p - 1 - r.
    """
    assert 0 <= stage < pipeline * virtual
    if name is ScheduleName.ZBV and stage >= pipeline:
        return 2 * pipeline - 1 - stage
    return stage % pipeline


def rank_stages(name: ScheduleName, rank: int, pipeline: int, virtual: int = 1) -> tuple[int, ...]:
    """The stages that a rank holds, ascending."""
    if name is ScheduleName.ZBV:
        return rank, 2 * pipeline - 1 - rank
    return tuple(range(rank, pipeline * virtual, pipeline))


@lru_cache(maxsize=16)
def schedule_actions(
    name: ScheduleName, num_stages: int, num_micro_batches: int, virtual: int = 1
) -> tuple[tuple[Action, ...], ...]:
    """The actions of every rank, in the order in which it runs them.

    Args:
        num_stages: stages in all (ranks on the pipeline axis x virtual stages).
        virtual: stages per rank.

    Raises:
        UsageError: the schedule does not run so many stages per rank.
    """
    check_schedule(name, virtual)
    assert num_stages >= 1 and num_micro_batches >= 1 and num_stages % virtual == 0
    pipeline = num_stages // virtual
    return tuple(_actions(name, rank, pipeline, num_micro_batches, virtual) for rank in range(pipeline))


def _actions(
    name: ScheduleName, rank: int, pipeline: int, num_micro_batches: int, virtual: int
) -> tuple[Action, ...]:
    match name:
        case ScheduleName.GPIPE:
            return gpipe(rank, num_micro_batches)
        case ScheduleName.ONE_F_ONE_B:
            return one_f_one_b(rank, pipeline, num_micro_batches)
        case ScheduleName.INTERLEAVED:
            return interleaved(rank, pipeline, micro_batch_groups(pipeline, num_micro_batches), virtual)
        case ScheduleName.ZERO_BUBBLE:
            return zb_h1(rank, pipeline, num_micro_batches)
        case ScheduleName.ZBV:
            return zb_v(rank, pipeline, num_micro_batches)


def in_flight(
    name: ScheduleName, num_stages: int, num_micro_batches: int, stage: int, virtual: int = 1
) -> int:
    """Most micro-batches whose saved activations ``stage`` holds at a time.

    They are held from the forward until the backward has run; where the backward is split, until its second
    half (W) has run. The stages of one rank need not hold most at the same time: ``rank_in_flight`` tells.
    """
    rank = stage_rank(name, stage, num_stages // virtual, virtual)
    position = rank_stages(name, rank, num_stages // virtual, virtual).index(stage)
    held = rank_in_flight(name, num_stages, num_micro_batches, rank, virtual)
    return max(counts[position] for counts in held)


def rank_in_flight(
    name: ScheduleName, num_stages: int, num_micro_batches: int, rank: int, virtual: int = 1
) -> tuple[tuple[int, ...], ...]:
    """How many micro-batches the stages of a rank hold at once, at the moments when it may be the most.

    Returns:
        Counts per stage of the rank (in the order of ``rank_stages``); moments at which no stage holds more
        than at another are left out. One entry where a rank holds one stage.
    """
    check_schedule(name, virtual)
    pipeline = num_stages // virtual
    if name is ScheduleName.GPIPE:
        return ((num_micro_batches,),)
    # Warm-up and the first steady micro-batches decide; what comes later repeats them.
    if name is ScheduleName.INTERLEAVED:
        groups = micro_batch_groups(pipeline, num_micro_batches)
        few = [size for size in dict.fromkeys(groups) for _ in range(min(groups.count(size), _STEADY_GROUPS))]
        return _rank_in_flight(name, pipeline, tuple(few), rank, virtual)
    return _rank_in_flight(name, pipeline, (min(num_micro_batches, 2 * pipeline),), rank, virtual)


@lru_cache(maxsize=4096)
def _rank_in_flight(
    name: ScheduleName, pipeline: int, groups: tuple[int, ...], rank: int, virtual: int
) -> tuple[tuple[int, ...], ...]:
    stages = rank_stages(name, rank, pipeline, virtual)
    if name is ScheduleName.INTERLEAVED:
        actions = interleaved(rank, pipeline, groups, virtual)
    else:
        actions = _actions(name, rank, pipeline, sum(groups), virtual)
    most: list[tuple[int, ...]] = []
    for counts in sorted(set(_moments(actions, stages)), key=lambda counts: (-sum(counts), counts)):
        if not any(all(x >= y for x, y in zip(other, counts, strict=True)) for other in most):
            most.append(counts)
    return tuple(most)


def _moments(actions: tuple[Action, ...], stages: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Micro-batches held per stage after every forward."""
    position = {stage: i for i, stage in enumerate(stages)}
    held = [0] * len(stages)
    for action in actions:
        if action.kind is ActionKind.FORWARD:
            held[position[action.stage]] += 1
            yield tuple(held)
        elif action.kind is not ActionKind.INPUT_BACKWARD:
            held[position[action.stage]] -= 1
