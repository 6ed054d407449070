"""Verification as a user starts it: processes, report, and errors without a trace."""

from dataclasses import replace

import pytest

from autopar.capture.capture import capture
from autopar.capture.target import load_target
from autopar.errors import DistributedError, PlanError
from autopar.plan.decisions import Mesh, ModelReference, Precision
from autopar.verify.verify import run_verify
from tests.runtime.plans import GPT_TENSOR, make_plan
from tests.runtime.world import MODELS


@pytest.fixture(scope="module")
def source():
    return load_target(str(MODELS / "tied_gpt.py"), {"n_layer": 2, "dropout": 0.1})


@pytest.fixture(scope="module")
def plan(source):
    graph = capture(source).at(2)
    return make_plan(graph, data=2, tensor=2, zero=3, lines=GPT_TENSOR, num_micro_batches=8)


def test_a_right_plan_is_equal(source, plan):
    report = run_verify(plan, source, num_steps=2)
    report.check()
    assert report.num_steps == 2 and report.worst_parameter
    assert report.notes == ("2 micro-batches a step instead of 8", "dropout switched off on both sides")


def test_a_plan_with_several_stages_a_rank_is_equal(source):
    graph = capture(source).at(2)
    plan = make_plan(graph, schedule="zbv", pipeline=2, virtual=2, zero=1, num_micro_batches=8)
    report = run_verify(plan, source, num_steps=1)
    report.check()
    assert report.notes[0] == "4 micro-batches a step instead of 8"


def test_an_incomplete_plan_is_refused_before_any_process(source, plan):
    with pytest.raises(PlanError, match=r"leaves open: mesh.data, recompute; complete it with: autopar plan"):
        run_verify(replace(plan, mesh=Mesh(1, None, 1), recompute=()), source)


def test_a_mistake_in_the_plan_comes_back_as_itself(source, plan):
    other = ModelReference(source.target, {}, "0000000000000000")
    with pytest.raises(PlanError, match="the plan is for the model 0000000000000000"):
        run_verify(replace(plan, model=other), source)


@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_in_the_plans_precision_no_more_is_allowed_than_rounding_explains(source, plan, precision):
    changed = replace(plan, precision=precision)
    report = run_verify(changed, source, num_steps=2, as_planned=True)
    report.check()
    assert 1e-4 < report.worst_gradient_error <= report.tolerance < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [{"data": 2, "zero": 3}, {"pipeline": 2}, {"tensor": 2}])
def test_a_compiled_plan_is_equal(degrees):
    source = load_target("examples/resnet.py", {"depth": 18, "width": 8, "num_classes": 10})
    plan = make_plan(capture(source).at(4), **degrees)
    report = run_verify(replace(plan, compile=True), source, num_steps=2)
    report.check()


@pytest.mark.slow
def test_too_little_time_is_an_error(source, plan):
    with pytest.raises(DistributedError, match=r"did not finish within 9.00 s|waited in vain"):
        run_verify(plan, source, num_steps=10**6, timeout_s=9.0)
