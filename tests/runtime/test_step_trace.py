"""The trace of a step: what every rank did, beside what the simulator does."""

import json
from itertools import pairwise

import pytest

from autopar.plan.decisions import ScheduleName
from autopar.schedule.actions import schedule_actions
from tests.runtime.world import Case, check, run_cases

PLANS = {
    "zbv": {"schedule": "zbv", "virtual": 2, "pipeline": 2, "num_micro_batches": 3},
    "data": {"schedule": "1f1b", "data": 2},
}


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("traces")
    paths = {name: folder / "deep" / f"{name}.json" for name in PLANS}
    cases = [Case(name, "trace", options=plan, extra={"path": paths[name]}) for name, plan in PLANS.items()]
    found = run_cases(2, cases)
    for name in PLANS:
        for before, after, later in check(found[name], 2):
            assert before == 0 and after == later > 0  # the second step alone
    return {name: json.loads(path.read_text()) for name, path in paths.items()}


def rows(trace, process):
    """Names of the events of every row, in order of time; none overlaps the next."""
    found = {}
    for event in trace["traceEvents"]:
        if event["ph"] == "X" and event["pid"] == process:
            found.setdefault(event["tid"], []).append(event)
    for events in found.values():
        events.sort(key=lambda event: event["ts"])
        for one, other in pairwise(events):
            assert one["ts"] >= 0 and one["ts"] + one["dur"] <= other["ts"] + 1e-3
    return {row: [event["name"] for event in events] for row, events in found.items()}


@pytest.mark.parametrize("name", PLANS)
def test_rows_are_the_lists_of_actions(traces, name):
    plan = PLANS[name]
    virtual, pipeline = plan.get("virtual", 1), plan.get("pipeline", 1)
    m = plan.get("num_micro_batches", 2)
    lists = schedule_actions(ScheduleName(plan["schedule"]), virtual * pipeline, m, virtual)
    simulated = rows(traces[name], 1)
    assert simulated == {rank: [str(action) for action in own] for rank, own in enumerate(lists)}
    for rank, names in rows(traces[name], 0).items():
        own = lists[rank * pipeline // 2]
        assert names == [*map(str, own), "synchronise gradients"]


def test_processes_and_rows_are_named(traces):
    names = [event["args"]["name"] for event in traces["zbv"]["traceEvents"] if event["ph"] == "M"]
    assert names == [
        *("measured", "rank 0", "rank 1"),
        *("simulated with the measured times", "pipeline rank 0", "pipeline rank 1"),
    ]


def test_simulated_actions_last_as_long_as_the_measured_ones_on_average(traces):
    def mean(process, kind, stage):
        taken = [
            event["dur"]
            for event in traces["zbv"]["traceEvents"]
            if event["ph"] == "X" and event["pid"] == process and event["cat"] == kind
            if event["args"]["stage"] == stage
        ]
        return sum(taken) / len(taken)

    for stage in range(4):
        for kind in ("forward", "input backward", "weight backward"):
            assert mean(1, kind, stage) == pytest.approx(mean(0, kind, stage), rel=1e-6)
