from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autopar.capture.capture import Capture, capture
from autopar.capture.target import load_target
from autopar.errors import InfeasibleError, PlanError
from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import cluster_of
from autopar.lower.resolve import missing_decisions, resolve
from autopar.plan.pins import parse_sets
from autopar.plan.read import read_plan
from autopar.plan.write import write_plan
from autopar.planner.check import check_plan
from autopar.planner.planner import make_plan
from autopar.planner.request import PlanRequest, PlanResult

ARGS = {"n_layer": 4, "n_embd": 512, "n_head": 8, "seq": 128, "vocab": 2048}
CLUSTER = cluster_of(load_device("a100-sxm-80gb"), 4)
MODEL_BYTES = 16 * 14_900_000
Planner = Callable[..., PlanResult]


@pytest.fixture(scope="module")
def captured() -> Capture:
    return capture(load_target("examples/gpt.py", ARGS), torch.bfloat16)


@pytest.fixture(scope="module")
def planner(captured: Capture) -> Planner:
    def plan(*sets: str, limit_bytes: int | None = None, top: int = 1) -> PlanResult:
        request = PlanRequest(
            captured.source,
            CLUSTER,
            global_batch=64,
            constraints=parse_sets(sets),
            memory_limit_bytes=limit_bytes,
            top=top,
        )
        return make_plan(request, captured=captured)

    return plan


@pytest.fixture(scope="module")
def free(planner: Planner) -> PlanResult:
    return planner(top=3)


SETS = [
    ["mesh.data=4"],
    ["mesh.tensor=4"],
    ["mesh.tensor=2", "activations.blocks.*=sequence", "tensor.blocks.*.mlp.fc=column"],
    ["mesh.tensor=2", "tensor.*=replicate"],
    ["mesh.tensor=2", "tensor.wte=vocab"],
    ["mesh.pipeline=2", "mesh.tensor=2"],
    ["mesh.pipeline=4", "pipeline.schedule=gpipe"],
    ["mesh.pipeline=2", "recompute=full", "batch.micro=4"],
    ["zero=1"],
    ["mesh.pipeline=2", "zero=[0, 3]"],
    ["pipeline.stages=[[wte, wpe, blocks.0], [blocks.1-3, ln_f, lm_head, loss]]"],
]


@pytest.mark.parametrize("sets", SETS, ids=" ".join)
def test_pins_are_law_and_never_beat_the_free_plan(
    sets: list[str], planner: Planner, free: PlanResult, captured: Capture
) -> None:
    result, pins = planner(*sets), parse_sets(sets)
    plan = result.plan
    assert (result.status == "optimal") == (result.gap == 0) and result.gap < 0.5
    assert not missing_decisions(plan)
    for axis in ("pipeline", "data", "tensor"):
        assert getattr(pins.mesh, axis) in (None, getattr(plan.mesh, axis))
    assert pins.micro_batch in (None, plan.micro_batch)
    assert pins.zero in (None, plan.zero)
    assert pins.stages in (None, plan.stages)
    assert pins.schedule in (None, plan.schedule)
    for section in ("tensor", "activations", "recompute"):
        wanted = [(line.pattern, line.word) for line in getattr(pins, section)]
        assert [(x.pattern, x.word) for x in getattr(plan, section)][: len(wanted)] == wanted
    resolve(plan, captured.at(plan.micro_batch or 0))
    assert result.prediction.step_time_s >= free.prediction.step_time_s * (1 - 1e-9)


@pytest.mark.parametrize("sets", [[], ["mesh.tensor=4"], ["mesh.pipeline=2", "mesh.tensor=2"]], ids=" ".join)
def test_a_written_plan_checks_to_the_same_prediction(
    sets: list[str], planner: Planner, captured: Capture, tmp_path: Path
) -> None:
    result = planner(*sets)
    path = tmp_path / "plan.yaml"
    path.write_text(write_plan(result.plan))
    checked = check_plan(read_plan(path), captured.source, CLUSTER, captured=captured)
    assert checked.prediction.step_time_s == pytest.approx(result.prediction.step_time_s, rel=1e-9)
    assert checked.prediction == result.prediction
    assert checked.infeasible is None and checked.warnings == ()


def test_the_same_request_gives_the_same_bytes(planner: Planner) -> None:
    texts = [write_plan(planner("mesh.tensor=2").plan) for _ in range(2)]
    assert texts[0] == texts[1]


def test_a_complete_plan_is_planned_to_itself(planner: Planner, captured: Capture) -> None:
    result = planner("mesh.tensor=2", "mesh.pipeline=2")
    request = PlanRequest(captured.source, CLUSTER, constraints=result.plan, top=1)
    again = make_plan(request, captured=captured)
    assert again.plan.chosen == ()  # every line was given
    assert write_plan(again.plan) == write_plan(replace(result.plan, chosen=()))
    assert again.prediction == result.prediction
    assert again.search.num_candidates == 1


def test_alternatives_are_other_meshes_and_say_why_not(free: PlanResult) -> None:
    meshes = [alternative.mesh for alternative in free.alternatives]
    assert len(meshes) == 2 and free.plan.mesh not in meshes and len(set(meshes)) == 2
    for alternative in free.alternatives:
        assert "slower" in alternative.why_not or "more than fits" in alternative.why_not
        if alternative.step_time_s is not None:
            assert alternative.step_time_s >= free.prediction.step_time_s


def test_less_memory_is_kept_to_and_costs_time(planner: Planner) -> None:
    sets = ["mesh.tensor=1", "batch.micro=16"]
    loose = planner(*sets)
    limit_bytes = CLUSTER.device.framework_reserved_bytes + 2 * MODEL_BYTES // 3
    tight = planner(*sets, limit_bytes=limit_bytes)
    assert loose.prediction.peak_memory_bytes > limit_bytes >= tight.prediction.peak_memory_bytes
    assert tight.prediction.step_time_s > loose.prediction.step_time_s


def test_what_does_not_fit_names_stage_shortfall_and_remedy(planner: Planner) -> None:
    limit_bytes = CLUSTER.device.framework_reserved_bytes + 10_000_000
    sets = ["mesh.tensor=1", "batch.micro=1"]
    with pytest.raises(
        InfeasibleError, match=r"memory of stage \d needs .* MiB more than .* usable"
    ) as caught:
        planner(*sets, limit_bytes=limit_bytes)
    missing_bytes = caught.value.shortfall_bytes
    assert missing_bytes is not None and missing_bytes > 0
    assert planner(*sets, limit_bytes=limit_bytes + missing_bytes).prediction.fits
    with pytest.raises(InfeasibleError):
        planner(*sets, limit_bytes=limit_bytes + missing_bytes - 2_000_000)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["mesh.tensor=5"], "mesh.tensor 5 is not possible.* legal degrees are 1, 2, 4"),
        (["mesh.pipeline=3"], "mesh.pipeline 3 is not possible.*legal degrees are 1, 2, 4"),
        (["mesh.data=2", "mesh.tensor=4"], "must multiply to 4"),
        (["batch.micro=5"], "batch.micro 5 does not divide.* legal micro-batches are 1, 2, 4"),
    ],
)
def test_pins_that_cannot_hold_list_what_can(sets: list[str], message: str, planner: Planner) -> None:
    with pytest.raises(InfeasibleError, match=message):
        planner(*sets)


def test_misspelt_pins_are_errors(planner: Planner) -> None:
    with pytest.raises(PlanError, match="did you mean"):
        planner("tensor.blocks.*.mpl.fc=column", "mesh.tensor=2")
    with pytest.raises(PlanError, match="which is not a block"):
        planner("pipeline.stages=[[wte, wpe, block.0], [blocks.1-3, ln_f, lm_head, loss]]")


def test_more_effort_proves_more_of_the_same_plan() -> None:
    source = load_target("examples/gpt.py", {**ARGS, "vocab": 4096})
    usual, more = (
        make_plan(PlanRequest(source, CLUSTER, 32, with_baselines=False, effort=effort)) for effort in (1, 8)
    )
    assert usual.status == "feasible" and more.status == "optimal"
    assert more.prediction.step_time_s <= usual.prediction.step_time_s
    assert more.bound_s > usual.bound_s
