"""An older plan's hand-made lines under another model size and another cluster."""

from dataclasses import replace

import pytest

from autopar.capture.target import load_target
from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import cluster_of
from autopar.plan.decisions import Plan
from autopar.plan.hand_made import codes_of_chosen, decisions, hand_made, without
from autopar.plan.pins import parse_sets
from autopar.plan.read import parse_plan
from autopar.plan.write import write_plan
from autopar.planner.like import OldLine, plan_like
from autopar.planner.request import PlanRequest, PlanResult
from tests.plan.test_read import PLAN

OLD = """\
batch: {micro: 2}
mesh: {pipeline: 1, data: 2, tensor: 2}
pipeline:
  schedule: 1f1b
  stages: [[wte, wpe, blocks.0-3, ln_f, lm_head, loss]]
tensor:
  blocks.*.attn.qkv: column
  blocks.*.mlp.gate: column
recompute: {blocks.0-1: full}
zero: 1
"""


def test_lines_are_the_planners_until_they_are_edited() -> None:
    plan = parse_plan(PLAN)
    asked = parse_plan("mesh: {tensor: 2}\ntensor: {wte: vocab}\n")
    written = write_plan(replace(plan, chosen=codes_of_chosen(plan, asked)))
    assert decisions(hand_made(parse_plan(written))) == decisions(asked)
    edited = written.replace("micro: 8", "micro: 4").replace("qkv: column", "qkv: row")
    assert set(decisions(hand_made(parse_plan(edited)))) == {
        "mesh.tensor",
        "tensor.wte",
        "batch.micro",
        "tensor.blocks.*.attn.qkv",
    }
    assert hand_made(plan) == plan  # nobody says that the planner wrote any of it


@pytest.mark.parametrize(
    "text", [PLAN, "mesh: {tensor: <=4}\nzero: 1-2\npipeline: {blocks_per_stage: 2-9}\n"]
)
def test_without_takes_every_decision_away(text: str) -> None:
    plan = parse_plan(text)
    for key in decisions(plan):
        before = decisions(plan)
        plan = without(plan, key)
        assert decisions(plan) == {k: value for k, value in before.items() if k != key}
    assert replace(plan, model=None, cluster=None) == Plan()


def planned_like(
    n_layer: int, gpus: int, sets: tuple[str, ...] = (), old: str = OLD
) -> tuple[PlanResult, dict[str, OldLine]]:
    args = {"n_layer": n_layer, "n_embd": 32, "n_head": 4, "seq": 16, "vocab": 64}
    source = load_target("examples/gpt.py", args)
    request = PlanRequest(
        source,
        cluster_of(load_device("cpu"), gpus, gpus),
        16,
        constraints=parse_sets(sets),
        top=1,
        with_baselines=False,
    )
    result, lines = plan_like(request, parse_plan(old, "old.yaml"))
    return result, {line.text.partition(": ")[0]: line for line in lines}


def test_like_keeps_what_the_new_model_and_cluster_allow_and_says_why_not_the_rest() -> None:
    result, lines = planned_like(6, 4, ("zero=0",))
    plan = result.plan
    assert (plan.mesh.pipeline, plan.mesh.data, plan.mesh.tensor, plan.micro_batch, plan.zero) == (
        1,
        2,
        2,
        2,
        0,
    )
    assert plan.tensor[0].pattern == "blocks.*.attn.qkv" and plan.recompute[0].pattern == "blocks.0-1"
    refused = {key: line.why_not for key, line in lines.items() if line.why_not}
    assert set(refused) == {"pipeline.stages", "tensor.blocks.*.mlp.gate", "zero"}
    assert "no stage holds blocks.4-5;" in refused["pipeline.stages"]
    assert "is no parameter" in refused["tensor.blocks.*.mlp.gate"]
    assert refused["zero"] == "it is given anew"
    assert str(lines["tensor.blocks.*.mlp.gate"]).startswith(
        "old.yaml:8:3: tensor.blocks.*.mlp.gate: column: not"
    )
    assert str(lines["batch.micro"]) == "old.yaml:1:9: batch.micro: 2: kept"


def test_like_gives_up_a_precision_that_the_device_does_not_have_and_nothing_else() -> None:
    old = OLD.replace("zero: 1", "zero: 1\nprecision: bf16").replace("batch: {", "batch: {global: 8, ")
    result, lines = planned_like(4, 4, old=old)
    assert (result.plan.precision, result.plan.global_batch, result.plan.mesh.tensor) == ("fp32", 8, 2)
    refused = {key: line.why_not for key, line in lines.items() if line.why_not}
    assert set(refused) == {"precision", "tensor.blocks.*.mlp.gate"}
    assert refused["precision"] == "cpu has no units for bf16; choose one of fp32"


@pytest.mark.slow
def test_like_on_more_devices_gives_up_the_data_degree_first() -> None:
    result, lines = planned_like(4, 8)
    assert (result.plan.mesh.pipeline, result.plan.mesh.data, result.plan.mesh.tensor) == (1, 4, 2)
    assert (
        lines["mesh.data"].why_not and not lines["mesh.tensor"].why_not and not lines["mesh.pipeline"].why_not
    )
