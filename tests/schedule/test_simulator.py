"""The simulator against closed forms and an independent longest-path computation."""

from __future__ import annotations

import itertools
import random

import pytest

from autopar.plan.decisions import ScheduleName
from autopar.schedule.actions import SPLIT_BACKWARD, Action, ActionKind, schedule_actions, stage_rank
from autopar.schedule.simulator import Timeline, finish_times, simulate

WHOLE = (ScheduleName.GPIPE, ScheduleName.ONE_F_ONE_B)


def play(name: ScheduleName, m: int, f: list[float], b: list[float], p2p: list[float]) -> Timeline:
    return simulate(schedule_actions(name, len(f), m), f, b, p2p)


def even_makespan(name: ScheduleName, p: int, m: int, v: int, f: float, i: float, w: float) -> float:
    """Of stages that are all alike: ``f``, ``i`` and ``w`` seconds each."""
    n = p * v
    return max(finish_times(name, m, v, [f] * n, [i + w] * n, [0.0] * (n - 1), [w] * n))


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize(("p", "m"), [(1, 1), (1, 5), (2, 2), (4, 4), (4, 9), (8, 3), (5, 16)])
def test_uniform_makespan(name: ScheduleName, p: int, m: int) -> None:
    timeline = play(name, m, [2.0] * p, [3.0] * p, [0.0] * (p - 1))
    assert timeline.makespan_s == pytest.approx((m + p - 1) * 5.0)
    for rank in range(p):
        assert timeline.busy_s(rank) == pytest.approx(m * 5.0)
        assert timeline.idle_s(rank) == pytest.approx((p - 1) * 5.0)


@pytest.mark.parametrize("p", range(1, 9))
def test_bubbles_are_those_of_the_papers(p: int) -> None:
    for m in range(p, 17):
        for v in (2, 3, 4):
            interleaved = even_makespan(ScheduleName.INTERLEAVED, p, m, v, 1.0, 1.0, 1.0)
            assert interleaved == pytest.approx(m * v * 3 + (p - 1) * 3)  # (p - 1)(F + B) / v, F = v x 1
        zero_bubble = even_makespan(ScheduleName.ZERO_BUBBLE, p, m, 1, 1.0, 1.0, 1.0)
        assert zero_bubble == pytest.approx(m * 3 + (p - 1))
        if m >= 2 * p:
            assert even_makespan(ScheduleName.ZBV, p, m, 2, 1.0, 1.0, 1.0) == pytest.approx(m * 6 + p - 1)


@pytest.mark.parametrize("p", [2, 4, 7])
@pytest.mark.parametrize("m", [1, 3, 5, 9, 16, 23])
def test_no_schedule_is_slower_than_what_it_improves_on(p: int, m: int) -> None:
    plain = even_makespan(ScheduleName.ONE_F_ONE_B, p, m, 1, 2.0, 2.0, 2.0)
    assert even_makespan(ScheduleName.ZERO_BUBBLE, p, m, 1, 2.0, 2.0, 2.0) <= plain
    assert even_makespan(ScheduleName.INTERLEAVED, p, m, 2, 1.0, 1.0, 1.0) <= plain
    assert even_makespan(ScheduleName.ZBV, p, m, 2, 1.0, 1.0, 1.0) <= plain


def test_one_slow_stage_sets_the_pace() -> None:
    timeline = play(ScheduleName.ONE_F_ONE_B, 10, [1.0, 3.0, 1.0], [2.0, 6.0, 2.0], [0.0, 0.0])
    assert timeline.makespan_s == pytest.approx(1.0 + 10 * 9.0 + 2.0)


def test_messages_delay_but_do_not_occupy() -> None:
    timeline = play(ScheduleName.GPIPE, 1, [1.0, 1.0], [2.0, 2.0], [0.5])
    assert timeline.makespan_s == pytest.approx(1 + 0.5 + 1 + 2 + 0.5 + 2)
    assert timeline.busy_s(0) == pytest.approx(3.0)


def test_a_message_between_stages_of_one_rank_costs_nothing() -> None:
    actions = schedule_actions(ScheduleName.ZBV, 4, 1, 2)
    times = [1.0] * 4
    # Stages 0, 1 | 1, 0: only the outer boundaries cross ranks, there and back again.
    timeline = simulate(actions, times, [2.0] * 4, [10.0, 1000.0, 10.0], times)
    assert timeline.makespan_s == pytest.approx(4 * 1 + 4 * 1 + 1 + 4 * 10 + 1)


def longest_path(
    actions: tuple[tuple[Action, ...], ...],
    f: list[float],
    b: list[float],
    p2p: list[float],
    w: list[float],
) -> float:
    """Bellman-Ford over the graph of actions: no event order, no queues."""
    edges: list[tuple[Action, Action, float]] = []
    home = {a.stage: rank for rank, own in enumerate(actions) for a in own}
    for rank in actions:
        edges += [(x, y, 0.0) for x, y in itertools.pairwise(rank)]
    everything = {a for rank in actions for a in rank}
    for action in everything:
        s, k = action.stage, action.micro_batch
        if action.kind is ActionKind.FORWARD and s > 0:
            delay = 0.0 if home[s] == home[s - 1] else p2p[s - 1]
            edges.append((Action(ActionKind.FORWARD, s - 1, k), action, delay))
        if action.kind in (ActionKind.BACKWARD, ActionKind.INPUT_BACKWARD):
            edges.append((Action(ActionKind.FORWARD, s, k), action, 0.0))
            if s < len(f) - 1:
                delay = 0.0 if home[s] == home[s + 1] else p2p[s]
                edges.append((Action(action.kind, s + 1, k), action, delay))
        if action.kind is ActionKind.WEIGHT_BACKWARD:
            edges.append((Action(ActionKind.INPUT_BACKWARD, s, k), action, 0.0))
    took = {
        a: {
            ActionKind.FORWARD: f[a.stage],
            ActionKind.BACKWARD: b[a.stage],
            ActionKind.INPUT_BACKWARD: b[a.stage] - w[a.stage],
            ActionKind.WEIGHT_BACKWARD: w[a.stage],
        }[a.kind]
        for a in everything
    }
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


@pytest.mark.parametrize("seed", range(60))
def test_random_times_agree_with_the_longest_path(seed: int) -> None:
    rng = random.Random(seed)
    name = list(ScheduleName)[seed % len(ScheduleName)]
    v = {ScheduleName.INTERLEAVED: rng.randint(2, 3), ScheduleName.ZBV: 2}.get(name, 1)
    p, m = rng.randint(1, 4), rng.randint(1, 7)
    f, b = [rng.random() for _ in range(p * v)], [2 * rng.random() for _ in range(p * v)]
    w = [rng.random() * whole for whole in b]
    p2p = [rng.random() * 0.3 for _ in range(p * v - 1)]
    actions = schedule_actions(name, p * v, m, v)
    timeline = simulate(actions, f, b, p2p, w)
    assert timeline.makespan_s == pytest.approx(longest_path(actions, f, b, p2p, w))
    for rank, events in enumerate(timeline.events):
        assert [e.action for e in events] == list(actions[rank])
        assert all(x.end_s <= y.start_s + 1e-12 for x, y in itertools.pairwise(events))
    ends = finish_times(name, m, v, f, b, p2p, w)
    last = {event.action.stage: event.end_s for events in timeline.events for event in events}
    assert list(ends) == [last[stage] for stage in range(p * v)]


@pytest.mark.parametrize("name", list(ScheduleName))
def test_a_stage_that_follows_on_the_same_rank_needs_no_message(name: ScheduleName) -> None:
    v = {ScheduleName.INTERLEAVED: 3, ScheduleName.ZBV: 2}.get(name, 1)
    weights = [1.0] * v if name in SPLIT_BACKWARD else None
    ends = finish_times(name, 4, v, [1.0] * v, [2.0] * v, [99.0] * (v - 1), weights)
    assert max(ends) == pytest.approx(4 * v * 3.0)
    assert {stage_rank(name, s, 1, v) for s in range(v)} == {0}


def test_a_deadlock_is_named() -> None:
    crossed = [(Action(ActionKind.BACKWARD, 0, 0), Action(ActionKind.FORWARD, 0, 0))]
    with pytest.raises(ValueError, match="deadlocks; ranks wait at 0B0"):
        simulate(crossed, [1.0], [1.0], [])


def test_ranks_that_wait_for_each_other_are_named() -> None:
    forward, backward = ActionKind.FORWARD, ActionKind.BACKWARD
    ranks = [
        (Action(forward, 0, 0), Action(backward, 0, 0), Action(forward, 0, 1), Action(backward, 0, 1)),
        (Action(forward, 1, 0), Action(forward, 1, 1), Action(backward, 1, 0), Action(backward, 1, 1)),
    ]
    with pytest.raises(ValueError, match="deadlocks; ranks wait at 0B0, 1F1"):
        simulate(ranks, [1.0] * 2, [1.0] * 2, [0.0])
