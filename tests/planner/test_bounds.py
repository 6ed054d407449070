"""Constraints that fix only a part: bounds on numbers, sizes of stages, a choice of ways to recompute."""

from functools import cache

import pytest

from autopar.errors import InfeasibleError
from autopar.plan.decisions import PatternLine
from autopar.plan.read import parse_plan
from autopar.planner.request import PlanResult
from tests.planner.subject import Subject, planned_within

GPT = {"n_layer": 4, "n_embd": 128, "n_head": 8, "seq": 32, "vocab": 256}
SUBJECT = Subject("examples/gpt.py", GPT, 32, with_baselines=False)


@cache
def planned(constraints: str) -> PlanResult:
    return planned_within(SUBJECT, parse_plan(constraints, "part.yaml"))


@pytest.mark.parametrize(
    ("constraints", "key", "least", "most"),
    [
        pytest.param("mesh: {tensor: '>=2'}", "mesh.tensor", 2, 4, marks=pytest.mark.slow),
        pytest.param("mesh: {data: <=2}", "mesh.data", 1, 2, marks=pytest.mark.slow),
        pytest.param("mesh: {pipeline: 2-3}", "mesh.pipeline", 2, 3, marks=pytest.mark.slow),
        pytest.param("batch: {micro: 3-4}", "micro_batch", 3, 4, marks=pytest.mark.slow),
        ("mesh: {data: 4}\nbatch: {micro: 3-4}", "micro_batch", 3, 4),
        ("mesh: {data: 4}\nzero: 2-3", "zero", 2, 3),
        pytest.param("mesh: {data: 1, tensor: 4}\nzero: '>=2'", "zero", 2, 3, marks=pytest.mark.slow),
        pytest.param(
            "mesh: {pipeline: 2}\npipeline: {virtual: '>=2'}", "virtual", 2, 9, marks=pytest.mark.slow
        ),
        ("mesh: {data: 4}\nzero: '>=1'\nshard_group: <=2", "shard_group", 1, 2),
    ],
)
def test_a_bound_is_kept_and_the_number_left_to_the_planner(
    constraints: str, key: str, least: int, most: int
) -> None:
    free, bounded = planned(constraints.partition("\n")[0]), planned(constraints)
    holder = bounded.plan.mesh if key.startswith("mesh.") else bounded.plan
    assert least <= getattr(holder, key.removeprefix("mesh.")) <= most
    assert not bounded.plan.bounds and not bounded.plan.stage_sizes
    assert bounded.prediction.step_time_s >= free.prediction.step_time_s * (1 - 1e-9)


def test_a_bound_that_the_free_plan_keeps_changes_nothing() -> None:
    free = planned("mesh: {data: 4}").plan
    assert planned("mesh: {data: 4}\nbatch: {micro: 1-32}\nzero: <=3").plan == free


@pytest.mark.parametrize(
    ("sizes", "allowed"),
    [
        ("{0: <=1, last: '>=4'}", [(1, 1), (1, 9), (1, 9), (4, 9)]),
        pytest.param("{'*': 2-3}", [(2, 3)] * 4, marks=pytest.mark.slow),
        ("{0-1: 3, last: 1}", [(3, 3), (3, 3), (1, 9), (1, 1)]),
    ],
)
def test_stages_hold_as_many_blocks_as_they_may(sizes: str, allowed: list[tuple[int, int]]) -> None:
    pinned = "mesh: {pipeline: 4, tensor: 1}\npipeline: {schedule: 1f1b"
    free, bounded = planned(f"{pinned}}}"), planned(f"{pinned}, blocks_per_stage: {sizes}}}")
    assert bounded.plan.stages is not None
    held = [len(stage) for stage in bounded.plan.stages]
    assert all(least <= size <= most for size, (least, most) in zip(held, allowed, strict=True)), held
    assert bounded.prediction.step_time_s >= free.bound_s * (1 - 1e-9)


def test_layers_that_recompute_may_do_so_in_any_way_allowed() -> None:
    lines = planned("mesh: {data: 4}\nrecompute: {blocks.0-1: [full, selective], '*': none}").plan.recompute
    assert lines[0].pattern == "blocks.0-1" and lines[0].word in ("full", "selective")
    assert lines[-1] == PatternLine("*", "none")


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        ("mesh: {tensor: '>=3', pipeline: '>=2'}", r"no mesh of 4 devices|nothing is within all bounds"),
        (
            "mesh: {pipeline: 2}\npipeline: {schedule: 1f1b, blocks_per_stage: <=3}",
            r"nothing is within all bounds: pipeline.blocks_per_stage.\* <=3 \(at part.yaml:2:28\).*9 stages",
        ),
        ("mesh: {tensor: 3}", r"mesh.tensor 3 is not possible \(at part.yaml:1:8\)"),
    ],
)
def test_bounds_that_nothing_meets_are_named(constraints: str, message: str) -> None:
    with pytest.raises(InfeasibleError, match=message):
        planned(constraints)
