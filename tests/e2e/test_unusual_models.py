"""Models written in other ways than the examples: planned with tensor parallelism, and verified."""

from pathlib import Path

import pytest
import torch

from autopar.capture.capture import capture
from autopar.capture.target import ModelSource, load_target
from autopar.errors import CaptureError
from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import make_cluster
from autopar.plan.decisions import Plan
from autopar.plan.pins import parse_sets
from autopar.planner.planner import make_plan
from autopar.planner.request import PlanRequest
from autopar.verify.verify import run_verify

MODELS = Path(__file__).parent / "models"


def source_of(name: str) -> ModelSource:
    return load_target(str(MODELS / f"{name}.py"), {})


def planned(source: ModelSource, *pins: str) -> Plan:
    cluster = make_cluster(load_device("cpu"), 1, 4)
    constraints = parse_sets(["batch.global=16", *pins])
    return make_plan(PlanRequest(source=source, cluster=cluster, constraints=constraints, top=1)).plan


def test_a_batch_entry_may_have_the_name_of_a_builtin() -> None:
    plan = planned(source_of("sequential"), "mesh.tensor=4")
    assert plan.mesh.tensor == 4


def test_fingerprint_ignores_results_that_nobody_reads() -> None:
    source = source_of("click_rate")
    single, double = (capture(source, dtype).at(2).fingerprint for dtype in (torch.float32, torch.float64))
    assert single == double


FUSED = (
    "mesh.tensor=4",
    "tensor.encoder.layers.*.self_attn.in_proj_weight=shard(0)",
    "tensor.encoder.layers.*.self_attn.in_proj_bias=shard(0)",
    "tensor.encoder.layers.*.self_attn.out_proj=row",
)


def test_a_pinned_placement_is_law_even_where_the_planner_would_not_offer_it() -> None:
    plan = planned(source_of("encoder"), *FUSED)
    assert ("encoder.layers.*.self_attn.out_proj", "row") in {(x.pattern, x.word) for x in plan.tensor}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pins"),
    [
        ("sequential", ("mesh.tensor=2", "mesh.pipeline=2", "tensor.*=shard(0)")),
        ("click_rate", ("mesh.data=2", "mesh.pipeline=2")),
        ("encoder", FUSED),
    ],
)
def test_they_equal_one_process(name: str, pins: tuple[str, ...]) -> None:
    source = source_of(name)
    report = run_verify(planned(source, *pins), source)
    assert report.ok, report


def test_what_cannot_be_captured_is_one_message_and_no_dump(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaptureError, match=r"branching\.py:14: .*depends on the values of tensors; use"):
        capture(source_of("branching"))
    assert capfd.readouterr() == ("", "")
