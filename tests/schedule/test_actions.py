"""Action lists of the schedules against their rules, closed forms and those of torch's own schedules."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from autopar.errors import UsageError
from autopar.plan.decisions import ScheduleName
from autopar.schedule.actions import (
    SPLIT_BACKWARD,
    ActionKind,
    in_flight,
    rank_in_flight,
    rank_stages,
    schedule_actions,
    stage_rank,
)
from autopar.schedule.interleaved import micro_batch_groups

SCHEDULES = [
    (ScheduleName.GPIPE, 1),
    (ScheduleName.ONE_F_ONE_B, 1),
    (ScheduleName.INTERLEAVED, 2),
    (ScheduleName.INTERLEAVED, 3),
    (ScheduleName.INTERLEAVED, 4),
    (ScheduleName.ZERO_BUBBLE, 1),
    (ScheduleName.ZBV, 2),
]
SIZES = [(p, m) for p in range(1, 9) for m in range(1, 17)]


@pytest.mark.parametrize(("name", "virtual"), SCHEDULES)
def test_every_micro_batch_runs_once_on_every_stage_in_order(name: ScheduleName, virtual: int) -> None:
    halves = [ActionKind.INPUT_BACKWARD, ActionKind.WEIGHT_BACKWARD]
    kinds = [ActionKind.FORWARD, *(halves if name in SPLIT_BACKWARD else [ActionKind.BACKWARD])]
    for p, m in SIZES:
        for rank, actions in enumerate(schedule_actions(name, p * virtual, m, virtual)):
            stages = rank_stages(name, rank, p, virtual)
            place = {action: i for i, action in enumerate(actions)}
            assert len(place) == len(actions) == len(kinds) * m * virtual
            assert {action.stage for action in actions} == set(stages)
            order = {(a.stage, a.micro_batch, a.kind): i for i, a in enumerate(actions)}
            for stage in stages:
                for k in range(m):
                    own = [order[stage, k, kind] for kind in kinds]
                    assert own == sorted(own)


@pytest.mark.parametrize(("name", "virtual"), SCHEDULES)
def test_every_stage_is_on_one_rank_and_every_rank_holds_as_many(name: ScheduleName, virtual: int) -> None:
    held = [rank_stages(name, rank, 5, virtual) for rank in range(5)]
    assert sorted(stage for stages in held for stage in stages) == list(range(5 * virtual))
    assert {len(stages) for stages in held} == {virtual}
    assert all(stage_rank(name, s, 5, virtual) == rank for rank, stages in enumerate(held) for s in stages)


def test_zbv_runs_down_the_ranks_and_up_again() -> None:
    assert [stage_rank(ScheduleName.ZBV, stage, 3, 2) for stage in range(6)] == [0, 1, 2, 2, 1, 0]
    assert [stage_rank(ScheduleName.INTERLEAVED, stage, 3, 2) for stage in range(6)] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(("name", "virtual"), SCHEDULES)
def test_in_flight_counts_are_those_of_the_actions(name: ScheduleName, virtual: int) -> None:
    for p, m in [*SIZES, (4, 61), (3, 100), (8, 63)]:
        for rank, actions in enumerate(schedule_actions(name, p * virtual, m, virtual)):
            stages = rank_stages(name, rank, p, virtual)
            held, peak, most = dict.fromkeys(stages, 0), dict.fromkeys(stages, 0), 0
            for action in actions:
                if action.kind is ActionKind.FORWARD:
                    held[action.stage] += 1
                elif action.kind is not ActionKind.INPUT_BACKWARD:
                    held[action.stage] -= 1
                peak = {stage: max(peak[stage], held[stage]) for stage in stages}
                most = max(most, sum(held.values()))
            assert set(held.values()) == {0}
            assert peak == {stage: in_flight(name, p * virtual, m, stage, virtual) for stage in stages}
            assert most == max(sum(counts) for counts in rank_in_flight(name, p * virtual, m, rank, virtual))


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_in_flight_closed_forms(p: int, m: int) -> None:
    for stage in range(p):
        assert in_flight(ScheduleName.GPIPE, p, m, stage) == m
        assert in_flight(ScheduleName.ONE_F_ONE_B, p, m, stage) == min(m, p - stage)
        assert in_flight(ScheduleName.ZERO_BUBBLE, p, m, stage) == min(m, p)
        counts = rank_in_flight(ScheduleName.ZBV, 2 * p, m, stage, 2)
        assert max(map(sum, counts)) <= 2 * p  # of half the size: what the first rank of 1F1B holds


@pytest.mark.parametrize("virtual", [2, 3, 4])
def test_interleaved_holds_what_megatron_says(virtual: int) -> None:
    for p in (2, 4, 8):
        for rank in range(p):
            held = rank_in_flight(ScheduleName.INTERLEAVED, p * virtual, 4 * p, rank, virtual)
            assert max(map(sum, held)) == 2 * (p - rank - 1) + (virtual - 1) * p + 1


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_groups_are_full_and_the_larger_come_first(p: int, m: int) -> None:
    groups = micro_batch_groups(p, m)
    assert sum(groups) == m
    assert list(groups) == sorted(groups, reverse=True)
    assert min(groups) >= min(p, m)
    if m % p == 0:
        assert set(groups) == {p}


def of_torch(kind: str, p: int, v: int, m: int) -> list[str]:
    """The action lists of torch's own schedule; only the outlines of its stages are asked for."""
    from torch.distributed.pipelining import schedules

    stages: Any = [
        SimpleNamespace(
            is_first=i == 0,
            is_last=False,
            group_size=p,
            group_rank=0,
            group=None,
            num_stages=p * v,
            stage_index=i,
            has_backward=True,
            stage_index_to_group_rank={},
            device="cpu",
            submod=None,
        )
        for i in range(v)
    ]
    schedule = getattr(schedules, kind)(stages, m, loss_fn=lambda output, target: output)
    return [" ".join(str(a) for a in own if a is not None) for own in schedule.pipeline_order.values()]


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8])
def test_interleaved_is_torchs_where_torch_takes_the_number_of_micro_batches(p: int) -> None:
    for v, m in [(2, p), (2, 2 * p), (3, 4 * p), (4, 3 * p)]:
        ours = schedule_actions(ScheduleName.INTERLEAVED, p * v, m, v)
        theirs = of_torch("ScheduleInterleaved1F1B", p, v, m)
        assert [" ".join(map(str, own)) for own in ours] == theirs


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8])
def test_zbv_is_torchs(p: int) -> None:
    for m in range(1, 4 * p):
        ours = schedule_actions(ScheduleName.ZBV, 2 * p, m, 2)
        assert [" ".join(map(str, own)) for own in ours] == of_torch("ScheduleZBVZeroBubble", p, 2, m)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8])
def test_zero_bubble_is_torchs_interleaved_one_with_one_stage_a_rank(p: int) -> None:
    for m in (p, 3 * p):
        ours = schedule_actions(ScheduleName.ZERO_BUBBLE, p, m)
        theirs = of_torch("ScheduleInterleavedZeroBubble", p, 1, m)
        assert [" ".join(map(str, own)) for own in ours] == theirs


def test_1f1b_of_three_stages_reads_as_in_the_paper() -> None:
    text = [
        " ".join(str(a)[1:] for a in actions) for actions in schedule_actions(ScheduleName.ONE_F_ONE_B, 3, 4)
    ]
    assert text == ["F0 F1 F2 B0 F3 B1 B2 B3", "F0 F1 B0 F2 B1 F3 B2 B3", "F0 B0 F1 B1 F2 B2 F3 B3"]


def test_zb_h1_puts_off_weights_by_the_rank() -> None:
    text = [
        " ".join(str(a)[1:] for a in actions) for actions in schedule_actions(ScheduleName.ZERO_BUBBLE, 2, 3)
    ]
    assert text == ["F0 F1 I0 W0 F2 I1 W1 I2 W2", "F0 I0 F1 I1 W0 F2 I2 W1 W2"]


@pytest.mark.parametrize(
    ("name", "virtual", "remedy"),
    [
        (
            ScheduleName.ONE_F_ONE_B,
            2,
            "schedule '1f1b' runs one stage on each rank, not 2; write 'virtual: 1'",
        ),
        (ScheduleName.ZERO_BUBBLE, 3, "one stage on each rank, not 3"),
        (ScheduleName.INTERLEAVED, 1, "several stages on each rank, not 1; write 'virtual: 2' or more"),
        (ScheduleName.ZBV, 1, "two stages on each rank, not 1; write 'virtual: 2'"),
        (ScheduleName.ZBV, 3, "two stages on each rank, not 3"),
    ],
)
def test_virtual_stages_that_a_schedule_does_not_run(name: ScheduleName, virtual: int, remedy: str) -> None:
    with pytest.raises(UsageError, match=remedy):
        schedule_actions(name, 12, 4, virtual)


@pytest.mark.parametrize("virtual", [2, 3])
@pytest.mark.parametrize("p", [2, 4, 5])
def test_no_moment_of_a_step_holds_more_than_those_named(p: int, virtual: int) -> None:
    name = ScheduleName.INTERLEAVED
    for m in range(1, 8 * p + 4):
        for rank, actions in enumerate(schedule_actions(name, p * virtual, m, virtual)):
            stages = rank_stages(name, rank, p, virtual)
            named = rank_in_flight(name, p * virtual, m, rank, virtual)
            held = dict.fromkeys(stages, 0)
            reached = set()
            for action in actions:
                held[action.stage] += 1 if action.kind is ActionKind.FORWARD else -1
                reached.add(tuple(held.values()))
            assert set(named) <= reached
            assert all(
                any(all(x >= y for x, y in zip(most, now, strict=True)) for most in named) for now in reached
            )
