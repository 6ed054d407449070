"""``--batch auto``: which global batches are tried, and that the best of them is what planning each gives."""

import pytest
import torch

from autopar.capture.capture import Capture, capture
from autopar.capture.target import load_target
from autopar.errors import InfeasibleError, PlanError
from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import cluster_of
from autopar.plan.decisions import Mesh, Plan
from autopar.plan.pins import parse_sets
from autopar.planner.best_batch import batch_sizes, plan_best_batch
from autopar.planner.planner import make_plan
from autopar.planner.request import PlanRequest, PlanResult

ARGS = {"n_layer": 2, "n_embd": 256, "n_head": 4, "seq": 128, "vocab": 1024}
CLUSTER = cluster_of(load_device("a100-sxm-80gb"), 2)
PINS = ("mesh.tensor=1", "mesh.pipeline=1", "zero=0")


@pytest.fixture(scope="module")
def captured() -> Capture:
    return capture(load_target("examples/gpt.py", ARGS), torch.bfloat16)


def _request(
    captured: Capture, *sets: str, batch: int | None = None, limit_bytes: int | None = None
) -> PlanRequest:
    return PlanRequest(
        captured.source,
        CLUSTER,
        batch,
        memory_limit_bytes=limit_bytes,
        constraints=parse_sets(sets),
        top=1,
        with_baselines=False,
    )


@pytest.fixture(scope="module")
def best(captured: Capture) -> PlanResult:
    return plan_best_batch(_request(captured, *PINS), captured=captured)


def test_batches_are_smooth_multiples_of_the_devices() -> None:
    assert batch_sizes(8, Plan()) == tuple(8 * k for k in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64))
    assert batch_sizes(8, Plan(micro_batch=3))[:3] == (24, 48, 72)
    assert batch_sizes(8, Plan(micro_batch=4, mesh=Mesh(data=4)))[:3] == (16, 32, 48)


def test_large_micro_batches_come_in_steps_of_several() -> None:
    assert batch_sizes(2, Plan(micro_batch=500)) == tuple(500 * k for k in (1, 2, 3, 4, 6, 8, 12, 16))
    assert batch_sizes(8, Plan(micro_batch=64, mesh=Mesh(data=8)))[-1] == 8 * 512
    assert batch_sizes(8, parse_sets(("batch.micro=>=100",)))[-1] == 8 * 768


def test_a_bound_on_the_micro_batch_has_batches_that_its_largest_divides() -> None:
    usual = set(batch_sizes(8, Plan()))
    tried = set(batch_sizes(8, parse_sets(("batch.micro=5-7",))))
    assert tried > usual and tried - usual == {56 * k for k in (1, 2, 3, 4, 6, 8)}
    for bound in ("<=4", "2-6", "<=1000", ">=2"):
        assert set(batch_sizes(8, parse_sets((f"batch.micro={bound}",)))) == usual


def test_the_best_throughput_is_chosen_and_each_is_told(best: PlanResult, captured: Capture) -> None:
    rates = {tried.global_batch: tried.samples_per_s for tried in best.batches}
    assert tuple(rates) == batch_sizes(2, Plan())[: len(rates)] and len(rates) > 3
    assert best.plan.global_batch == max(rates, key=lambda size: rates[size] or 0.0)
    assert all(f"{size}: " in best.notes[0] for size in rates)
    for size in (2, 6, best.plan.global_batch):
        alone = make_plan(_request(captured, *PINS, batch=size), captured=captured)
        assert alone.prediction.samples_per_s == pytest.approx(rates[size])


def test_where_no_batch_fits_the_smallest_says_why(best: PlanResult, captured: Capture) -> None:
    sets = (*PINS, "recompute=none", f"batch.micro={best.plan.micro_batch}")
    with pytest.raises(InfeasibleError, match=r"no plan fits: memory of stage"):
        plan_best_batch(_request(captured, *sets, limit_bytes=2**30), captured=captured)


def test_a_least_micro_batch_does_not_end_the_search_at_the_first_batch(captured: Capture) -> None:
    # Two samples in one micro-batch leave one data rank, and nothing is divided; four leave two.
    sets = (
        "batch.micro=>=2",
        "mesh.pipeline=1",
        "mesh.tensor=1-2",
        "activations=replicate",
        "tensor=replicate",
        "offload=none",
    )
    enough = []
    for size in (2, 4):
        with pytest.raises(InfeasibleError) as caught:
            make_plan(_request(captured, *sets, batch=size, limit_bytes=2**20), captured=captured)
        assert caught.value.remedies is not None
        enough.append(caught.value.remedies["memory_per_device_bytes"])
    assert enough[1] < enough[0]
    found = plan_best_batch(_request(captured, *sets, limit_bytes=sum(enough) // 2), captured=captured)
    assert found.batches[0].samples_per_s is None
    assert found.plan.mesh.data == 2


def test_a_pinned_batch_contradicts(captured: Capture) -> None:
    with pytest.raises(PlanError, match=r"batch.global is 64 here and auto in --batch auto.*keep one"):
        plan_best_batch(_request(captured, "batch.global=64"), captured=captured)
