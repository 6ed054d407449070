"""The simulator against closed forms and an independent longest-path computation."""

from __future__ import annotations

import itertools
import random

import pytest

from autopar.plan.decisions import ScheduleName
from autopar.schedule.actions import SUPPORTED_SCHEDULES, Action, ActionKind, schedule_actions
from autopar.schedule.simulator import Timeline, simulate


def play(name: ScheduleName, m: int, f: list[float], b: list[float], p2p: list[float]) -> Timeline:
    return simulate(schedule_actions(name, len(f), m), f, b, p2p)


@pytest.mark.parametrize("name", SUPPORTED_SCHEDULES)
@pytest.mark.parametrize(("p", "m"), [(1, 1), (1, 5), (2, 2), (4, 4), (4, 9), (8, 3), (5, 16)])
def test_uniform_makespan(name: ScheduleName, p: int, m: int) -> None:
    timeline = play(name, m, [2.0] * p, [3.0] * p, [0.0] * (p - 1))
    assert timeline.makespan_s == pytest.approx((m + p - 1) * 5.0)
    for rank in range(p):
        assert timeline.busy_s(rank) == pytest.approx(m * 5.0)
        assert timeline.idle_s(rank) == pytest.approx((p - 1) * 5.0)


def test_one_slow_stage_sets_the_pace() -> None:
    timeline = play(ScheduleName.ONE_F_ONE_B, 10, [1.0, 3.0, 1.0], [2.0, 6.0, 2.0], [0.0, 0.0])
    assert timeline.makespan_s == pytest.approx(1.0 + 10 * 9.0 + 2.0)


def test_messages_delay_but_do_not_occupy() -> None:
    timeline = play(ScheduleName.GPIPE, 1, [1.0, 1.0], [2.0, 2.0], [0.5])
    assert timeline.makespan_s == pytest.approx(1 + 0.5 + 1 + 2 + 0.5 + 2)
    assert timeline.busy_s(0) == pytest.approx(3.0)


def longest_path(
    actions: tuple[tuple[Action, ...], ...], f: list[float], b: list[float], p2p: list[float]
) -> float:
    """Bellman-Ford over the graph of actions: no event order, no queues."""
    edges: list[tuple[Action, Action, float]] = []
    for rank in actions:
        edges += [(x, y, 0.0) for x, y in itertools.pairwise(rank)]
    for action in [a for rank in actions for a in rank]:
        s, k = action.stage, action.micro_batch
        if action.kind is ActionKind.FORWARD and s > 0:
            edges.append((Action(ActionKind.FORWARD, s - 1, k), action, p2p[s - 1]))
        if action.kind is ActionKind.BACKWARD:
            edges.append((Action(ActionKind.FORWARD, s, k), action, 0.0))
            if s < len(f) - 1:
                edges.append((Action(ActionKind.BACKWARD, s + 1, k), action, p2p[s]))
    took = {a: (f if a.kind is ActionKind.FORWARD else b)[a.stage] for rank in actions for a in rank}
    start = dict.fromkeys(took, 0.0)
    for _ in range(len(start) + 1):
        changed = False
        for x, y, delay in edges:
            if start[x] + took[x] + delay > start[y] + 1e-12:
                start[y], changed = start[x] + took[x] + delay, True
        if not changed:
            break
    else:
        raise AssertionError("a cycle")
    return max(start[a] + took[a] for a in took)


@pytest.mark.parametrize("seed", range(30))
def test_random_times_agree_with_the_longest_path(seed: int) -> None:
    rng = random.Random(seed)
    p, m = rng.randint(1, 5), rng.randint(1, 7)
    f, b = [rng.random() for _ in range(p)], [2 * rng.random() for _ in range(p)]
    p2p = [rng.random() * 0.3 for _ in range(p - 1)]
    name = rng.choice(SUPPORTED_SCHEDULES)
    timeline = play(name, m, f, b, p2p)
    assert timeline.makespan_s == pytest.approx(longest_path(schedule_actions(name, p, m), f, b, p2p))
    for rank, events in enumerate(timeline.events):
        assert [e.action for e in events] == list(schedule_actions(name, p, m)[rank])
        assert all(x.end_s <= y.start_s + 1e-12 for x, y in itertools.pairwise(events))


def test_a_deadlock_is_named() -> None:
    crossed = [(Action(ActionKind.BACKWARD, 0, 0), Action(ActionKind.FORWARD, 0, 0))]
    with pytest.raises(ValueError, match="deadlocks; ranks wait at 0B0"):
        simulate(crossed, [1.0], [1.0], [])
