"""Plans rest on measured blocks where the device has them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autopar.capture.capture import Capture, capture
from autopar.capture.model_graph import Block, InputKind
from autopar.capture.target import load_target
from autopar.cost.blocks import Readings, block_choice, operator_sums
from autopar.cost.layout import Layout
from autopar.cost.measured import OperatorSum, correction, measured_note, slowdown
from autopar.cost.stage_time import stage_seconds
from autopar.cost.training import training_of
from autopar.hardware.blocks import MeasuredBlock, Slowdown
from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import Cluster, make_cluster
from autopar.hardware.read_device import read_device
from autopar.plan.decisions import Mesh, PatternLine, Plan, Precision, Recompute, ScheduleName
from autopar.planner.planner import make_plan
from autopar.planner.request import PlanRequest
from autopar.profile.block_times import BlockRun, BlockToTime, classes_of, with_common_updates
from autopar.profile.cost_model import cost_model_text
from autopar.profile.lone_axis import LoneAxis
from autopar.profile.sharded_blocks import shardings_of, with_slowdowns
from autopar.sharding.placement import REPLICATE, Shard
from autopar.sharding.propagation import BlockSharding, propagate
from tests.profile.made_up import block_times, made_up_profile, spread

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


def test_updates_of_a_measured_block_take_what_was_measured(captured: Capture) -> None:
    block = captured.at(4).blocks[2]
    num_elements = sum(
        captured.at(4).parameters[item.source].spec.num_elements
        for item in block.inputs
        if item.kind is InputKind.PARAMETER
    )
    known = MeasuredBlock(block.class_key, "fp32", 0.5, 1.25, update_s=0.75)
    cpu = replace(load_device("cpu"), update_bytes_per_s=4e9, blocks={block.class_key: known})
    cluster = make_cluster(cpu, 1, 4)
    plan = Layout(1, 4, 1, 4, 1, ScheduleName.ONE_F_ONE_B, 1, (0,), Precision.FP32, "adamw", ())
    for sharding, share in ((propagate(block, 1, {}, {}, ()), 1.0), (divided(block), None)):
        choice = block_choice(block, sharding, Recompute.NONE, cluster, 4)
        assert choice.update_weight == pytest.approx(0.75 / (num_elements * 80 / 4e9))
        seconds = stage_seconds((choice,), training_of(plan, cluster), 0)
        share = share or choice.trainable_elements / num_elements
        assert seconds.update_s == pytest.approx(0.75 * share + cpu.step_s, rel=1e-4)


def test_the_update_of_a_class_is_the_median_over_its_micro_batches() -> None:
    slow, usual, quick, other = (
        replace(block_times(key, 1e-3, 2e-3), update=spread(seconds))
        for key, seconds in (("abc-1", 9e-3), ("abc-2", 4e-3), ("abc-4", 3e-3), ("def-4", 1e-3))
    )
    without = block_times("abc-8", 1e-3, 2e-3)
    found = with_common_updates((slow, usual, quick, other, without))
    assert [one.update and one.update.median_s for one in found] == [4e-3, 4e-3, 4e-3, 1e-3, None]
    assert [one.class_key for one in found] == ["abc-1", "abc-2", "abc-4", "def-4", "abc-8"]


def test_what_is_updated_is_the_parameters_of_the_block(
    captured: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = captured.at(4)
    run = BlockRun(
        BlockToTime(graph.blocks[2], graph, captured.source.example_batch(4), Precision.FP32),
        torch.device("cpu"),
    )
    run.forward()
    run.backward()
    update = run.update()
    assert update is not None
    update()
    optimizer = update.__self__
    names = [item.source for item in graph.blocks[2].inputs if item.kind is InputKind.PARAMETER]
    (group,) = optimizer.param_groups
    assert [tuple(p.shape) for p in group["params"]] == [graph.parameters[n].spec.shape for n in names]
    for parameter, state in optimizer.state.items():
        assert torch.equal(state["exp_avg"], 0.1 * parameter.grad)
    monkeypatch.setattr("autopar.profile.block_times._MOST_UPDATED_BYTES", 1)
    assert run.update() is None


def divided(block: Block) -> BlockSharding:
    """A sharding that divides one product."""
    weights = [item.source for item in block.inputs if item.source.endswith("mlp.fc.weight")]
    assert weights
    return propagate(block, 2, {name: Shard(0) for name in weights}, {}, (REPLICATE,))


def test_a_sharded_block_is_corrected_by_the_same_factor(captured: Capture) -> None:
    block = captured.at(4).blocks[2]
    plain = make_cluster(load_device("cpu"), 1, 4)
    sharding = divided(block)
    slow = with_blocks(captured, 4, 0.5, 1.25)
    factors = correction(block, slow.device).whole
    assert factors.forward > 1 and factors.backward > 1
    before = block_choice(block, sharding, Recompute.NONE, plain, 4)
    after = block_choice(block, sharding, Recompute.NONE, slow, 4)
    assert after.forward_compute_s == pytest.approx(before.forward_compute_s * factors.forward)
    assert after.backward_compute_s == pytest.approx(before.backward_compute_s * factors.backward)
    assert after.forward_comm_s == before.forward_comm_s


def test_a_sharding_that_was_measured_takes_what_was_measured(captured: Capture) -> None:
    block = captured.at(4).blocks[2]
    sharding, cluster = divided(block), with_blocks(captured, 4, 0.5, 1.25)
    sums = operator_sums(block, sharding, cluster)
    whole = correction(block, cluster.device).whole
    known = replace(cluster.device.blocks[block.class_key], sharded={2: slowdown((0.8, 1.6), *sums, whole)})
    measured = make_cluster(replace(cluster.device, blocks={block.class_key: known}), 1, 4)
    choice = block_choice(block, sharding, Recompute.NONE, measured, 4)
    assert (choice.forward_compute_s, choice.backward_compute_s) == pytest.approx((0.8, 1.6))
    # Where nothing is divided, and at other degrees, the whole block's factor holds.
    nothing = propagate(block, 2, {}, {}, (REPLICATE,))
    same = block_choice(block, nothing, Recompute.NONE, measured, 4)
    assert same.forward_compute_s == pytest.approx(0.5)
    assert correction(block, measured.device, 4).divided == whole


def test_what_is_divided_next_to_nothing_says_little(captured: Capture) -> None:
    found = slowdown((9.0, 1.0), OperatorSum(1.0, 0.001), OperatorSum(1.0, 0.0), Slowdown(2.0, 3.0))
    assert found == Slowdown(8.0, 3.0)
    # Dividing makes nothing quicker than thought.
    assert slowdown((0.1, 9.0), OperatorSum(1.0, 1.0), OperatorSum(1.0, 0.5), Slowdown(2.0, 3.0)) == Slowdown(
        2.0, 12.0
    )


@pytest.mark.parametrize("degree", [2, 4])
def test_programs_of_sharded_blocks_run_alone(captured: Capture, degree: int) -> None:
    graph, batch = captured.at(2), captured.source.example_batch(2)
    names = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc.weight", "mlp.proj.weight")
    placements = (Shard(0, 3), Shard(1), Shard(0), Shard(1))
    for block in classes_of(graph):
        placed = {
            item.source: placement
            for item in block.inputs
            for name, placement in zip(names, placements, strict=True)
            if item.source.endswith(name)
        }
        sharding = propagate(block, degree, placed, {}, (REPLICATE,) * len(block.outputs))
        item = BlockToTime(block, graph, batch, Precision.FP32, sharding)
        run = BlockRun(item, torch.device("cpu"))
        run.forward()
        run.backward()
        assert item.degree == degree
        assert all(value is None or value.isfinite().all() for value in run.gradients)


def test_shardings_are_those_of_a_plan_at_any_micro_batch(captured: Capture) -> None:
    cluster = make_cluster(load_device("cpu"), 1, 2)
    pins = Plan(mesh=Mesh(1, 1, 2), tensor=(PatternLine("blocks.*.mlp.fc", "column"),))
    request = PlanRequest(captured.source, cluster, global_batch=8, constraints=pins, top=1)
    plan = make_plan(request, captured=captured).plan
    for micro_batch in (2, 4):
        graph = captured.at(micro_batch)
        found = shardings_of(plan, graph)
        assert graph.blocks[2].class_key in found
        assert all(sharding.degree == 2 for sharding in found.values())


def test_times_of_sharded_blocks_are_explained(captured: Capture, tmp_path: Path) -> None:
    graph, block = captured.at(4), captured.at(4).blocks[2]
    items = [BlockToTime(block, graph, {}, Precision.FP32, s) for s in (None, divided(block))]
    times = (
        block_times(block.class_key, 0.5, 1.25),
        replace(block_times(block.class_key, 0.8, 1.6), degree=2),
    )
    profile = with_slowdowns(replace(made_up_profile(), blocks=times), items, tmp_path)
    path = tmp_path / "here.yaml"
    path.write_text(cost_model_text(profile, "here"))
    choice = block_choice(block, divided(block), Recompute.NONE, make_cluster(read_device(path), 1, 4), 4)
    # Its collectives were in what was measured, and are charged by themselves.
    assert choice.forward_comm_s + choice.backward_comm_s > 0
    assert choice.forward_s == pytest.approx(0.8, rel=2e-3)
    assert choice.backward_s == pytest.approx(1.6, rel=2e-3)


class CountingAxis(LoneAxis):
    """Counts sums."""

    num_sums = 0

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        self.num_sums += 1
        return super().all_reduce(tensor)


def test_sharded_blocks_communicate_where_there_is_somebody(captured: Capture) -> None:
    graph, block = captured.at(2), captured.at(2).blocks[2]
    weights = {x.source: Shard(0) for x in block.inputs if x.source.endswith("mlp.fc.weight")}
    weights |= {x.source: Shard(1) for x in block.inputs if x.source.endswith("mlp.proj.weight")}
    sharding = propagate(block, 2, weights, {}, (REPLICATE,))
    item = BlockToTime(block, graph, {}, Precision.FP32, sharding)
    axis = CountingAxis(2)
    run = BlockRun(item, torch.device("cpu"), axis)
    run.forward()
    assert axis.num_sums == 1 and not run.is_alone
    run.backward()
    assert axis.num_sums == 2
    whole = BlockToTime(block, graph, {}, Precision.FP32)
    assert BlockRun(whole, torch.device("cpu"), axis).is_alone
    assert BlockRun(item, torch.device("cpu")).is_alone


def test_parameters_on_a_tensor_axis_take_the_host_time(captured: Capture) -> None:
    block, device = captured.at(4).blocks[2], load_device("cpu")
    num = sum(item.kind is InputKind.PARAMETER for item in block.inputs)
    slow = replace(device, tensor_parameter_s=1e-3)

    def more_s(sharding: BlockSharding) -> tuple[float, float]:
        before, after = (
            block_choice(block, sharding, Recompute.NONE, make_cluster(d, 1, 4), 4) for d in (device, slow)
        )
        assert after.forward_host_s - before.forward_host_s == pytest.approx(
            after.forward_s - before.forward_s
        )
        return after.forward_s - before.forward_s, after.backward_s - before.backward_s

    assert num > 4
    assert more_s(divided(block)) == pytest.approx((num * 1e-3, num * 1e-3))
    assert more_s(propagate(block, 1, {}, {}, ())) == (0.0, 0.0)


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
    assert correction(captured.at(2).blocks[2], cluster.device).whole == Slowdown()
    assert "other micro-batches than 2" in measured_note(captured.at(2), cluster.device)
    assert measured_note(captured.at(2), load_device("cpu")) == ""
