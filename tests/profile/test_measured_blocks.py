"""Plans rest on measured blocks where the device has them."""

from dataclasses import replace
from pathlib import Path

import pytest

from autopar.capture.capture import Capture, capture
from autopar.capture.target import load_target
from autopar.cost.blocks import Readings, block_choice
from autopar.cost.measured import correction, measured_note
from autopar.hardware.blocks import MeasuredBlock
from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import Cluster, make_cluster
from autopar.plan.decisions import Mesh, Plan, Recompute
from autopar.planner.planner import make_plan
from autopar.planner.request import PlanRequest
from autopar.sharding.placement import REPLICATE, Shard
from autopar.sharding.propagation import propagate

ROOT = Path(__file__).resolve().parents[2]
ARGS = {"n_layer": 2, "n_embd": 64, "n_head": 4, "seq": 32, "vocab": 256}


@pytest.fixture(scope="module")
def captured() -> Capture:
    return capture(load_target(str(ROOT / "examples" / "gpt.py"), ARGS))


def with_blocks(captured: Capture, micro_batch: int, forward_s: float, backward_s: float) -> Cluster:
    """Four CPU processes on which every block of the model was measured to take so long."""
    keys = {block.class_key for block in captured.at(micro_batch).blocks}
    blocks = {key: MeasuredBlock(key, "fp32", forward_s, backward_s) for key in keys}
    return make_cluster(replace(load_device("cpu"), blocks=blocks, path="here.yaml"), 1, 4)


def test_a_whole_block_takes_what_was_measured(captured: Capture) -> None:
    cluster = with_blocks(captured, 4, 0.5, 1.25)
    block = captured.at(4).blocks[2]
    sharding = propagate(block, 1, {}, {}, ())
    choice = block_choice(block, sharding, Recompute.NONE, cluster, 4, readings=Readings(cluster))
    assert (choice.forward_compute_s, choice.backward_compute_s) == (0.5, 1.25)
    again = block_choice(block, sharding, Recompute.FULL, cluster, 4, readings=Readings(cluster))
    assert again.backward_compute_s == 1.75


def test_a_sharded_block_is_corrected_by_the_same_factor(captured: Capture) -> None:
    block = captured.at(4).blocks[2]
    plain = make_cluster(load_device("cpu"), 1, 4)
    weights = [item.source for item in block.inputs if item.source.endswith("mlp.fc.weight")]
    assert weights
    sharding = propagate(block, 2, {name: Shard(0) for name in weights}, {}, (REPLICATE,))
    slow = with_blocks(captured, 4, 0.5, 1.25)
    factors = correction(block, slow.device)
    assert factors.forward > 1 and factors.backward > 1
    before = block_choice(block, sharding, Recompute.NONE, plain, 4)
    after = block_choice(block, sharding, Recompute.NONE, slow, 4)
    assert after.forward_compute_s == pytest.approx(before.forward_compute_s * factors.forward)
    assert after.backward_compute_s == pytest.approx(before.backward_compute_s * factors.backward)
    assert after.forward_comm_s == before.forward_comm_s


def test_a_plan_rests_on_measured_blocks_and_says_so(captured: Capture) -> None:
    pins = Plan(mesh=Mesh(1, 4, 1), micro_batch=4, zero=0)
    plain = make_cluster(load_device("cpu"), 1, 4)
    slow = with_blocks(captured, 4, 0.5, 1.25)

    def planned(cluster: Cluster):  # type: ignore[no-untyped-def]
        request = PlanRequest(captured.source, cluster, global_batch=16, constraints=pins, top=1)
        return make_plan(request, captured=captured)

    before, after = planned(plain), planned(slow)
    num_blocks = len(captured.at(4).blocks)
    assert after.prediction.step_time_s >= num_blocks * 1.75 > before.prediction.step_time_s
    assert any(f"times of all of {num_blocks} blocks were measured" in note for note in after.notes)
    assert not any("measured" in note for note in before.notes)


def test_other_micro_batches_are_not_taken_for_measured(captured: Capture) -> None:
    cluster = with_blocks(captured, 4, 0.5, 1.25)
    assert correction(captured.at(2).blocks[2], cluster.device).forward == 1.0
    assert "other micro-batches than 2" in measured_note(captured.at(2), cluster.device)
    assert measured_note(captured.at(2), load_device("cpu")) == ""
