"""Action lists of the schedules against their closed forms."""

from __future__ import annotations

import pytest

from autopar.errors import UsageError
from autopar.plan.decisions import ScheduleName
from autopar.schedule.actions import SUPPORTED_SCHEDULES, ActionKind, in_flight, schedule_actions

SIZES = [(p, m) for p in (1, 2, 3, 4, 7) for m in (1, 2, 3, 4, 8, 13)]


@pytest.mark.parametrize("name", SUPPORTED_SCHEDULES)
@pytest.mark.parametrize(("p", "m"), SIZES)
def test_every_micro_batch_runs_once_forward_then_backward(name: ScheduleName, p: int, m: int) -> None:
    for stage, actions in enumerate(schedule_actions(name, p, m)):
        assert {action.stage for action in actions} == {stage}
        assert len(set(actions)) == len(actions) == 2 * m
        seen = {(action.kind, action.micro_batch): i for i, action in enumerate(actions)}
        for k in range(m):
            assert seen[ActionKind.FORWARD, k] < seen[ActionKind.BACKWARD, k]


@pytest.mark.parametrize("name", SUPPORTED_SCHEDULES)
@pytest.mark.parametrize(("p", "m"), SIZES)
def test_in_flight_counts_are_those_of_the_actions(name: ScheduleName, p: int, m: int) -> None:
    for stage, actions in enumerate(schedule_actions(name, p, m)):
        held = peak = 0
        for action in actions:
            held += 1 if action.kind is ActionKind.FORWARD else -1
            peak = max(peak, held)
        assert held == 0
        assert peak == in_flight(name, p, m, stage)
        assert peak == (m if name is ScheduleName.GPIPE else min(m, p - stage))


def test_1f1b_of_three_stages_reads_as_in_the_paper() -> None:
    text = [
        " ".join(str(a)[1:] for a in actions) for actions in schedule_actions(ScheduleName.ONE_F_ONE_B, 3, 4)
    ]
    assert text == ["F0 F1 F2 B0 F3 B1 B2 B3", "F0 F1 B0 F2 B1 F3 B2 B3", "F0 B0 F1 B1 F2 B2 F3 B3"]


@pytest.mark.parametrize("name", [ScheduleName.INTERLEAVED, ScheduleName.ZERO_BUBBLE, ScheduleName.ZBV])
def test_unsupported_schedule_names_the_supported(name: ScheduleName) -> None:
    with pytest.raises(UsageError, match=f"'{name}' is not supported yet; choose one of: gpipe, 1f1b"):
        schedule_actions(name, 2, 2)


def test_virtual_stages_are_refused() -> None:
    with pytest.raises(UsageError, match="not virtual: 2"):
        schedule_actions(ScheduleName.ONE_F_ONE_B, 4, 4, 2)
