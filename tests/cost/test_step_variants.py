"""The step model over schedules, mesh orders, shard groups, offload and shared cores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autopar.cost.choice import BlockChoice, ParameterShare
from autopar.cost.layout import SharedParameter
from autopar.cost.prediction import Prediction
from autopar.cost.stage_time import stage_seconds
from autopar.cost.step import predict, step_pieces
from autopar.cost.synchronisation import DataTraffic, data_traffic, exposed
from autopar.cost.training import Training, training_of
from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import Cluster, make_cluster
from autopar.hardware.link import CollectiveKind
from autopar.hardware.tables import SizeTable
from autopar.plan.decisions import Precision, ScheduleName
from tests.cost.layouts import VARIANTS, GiB, block, four_ranks, heavy, layout


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return make_cluster(load_device("a100-sxm-80gb"), 2)


def played(cluster: Cluster, schedule: ScheduleName, virtual: int, **changes: object) -> Prediction:
    """Eight equal blocks on four ranks of the pipeline."""
    return predict(four_ranks(schedule, virtual, **changes), cluster, 80 * GiB)


@pytest.mark.parametrize(("schedule", "virtual"), VARIANTS)
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_parts_of_every_rank_add_up_under_every_schedule(
    cluster: Cluster, schedule: ScheduleName, virtual: int, zero: int
) -> None:
    prediction = played(cluster, schedule, virtual, data=4, zero=(zero,) * 4 * virtual)
    assert len(prediction.stages) == 4
    for stage in prediction.stages:
        total = stage.compute_s + stage.comm_s + stage.idle_s
        assert total == pytest.approx(prediction.step_time_s)
        assert min(stage.compute_s, stage.comm_s, stage.idle_s) >= 0


def test_better_schedules_have_smaller_bubbles(cluster: Cluster) -> None:
    step_s = {(s, v): played(cluster, s, v).step_time_s for s, v in VARIANTS}
    plain = step_s[ScheduleName.ONE_F_ONE_B, 1]
    assert step_s[ScheduleName.INTERLEAVED, 2] < plain
    assert step_s[ScheduleName.ZERO_BUBBLE, 1] < plain
    assert step_s[ScheduleName.ZBV, 2] < step_s[ScheduleName.ZERO_BUBBLE, 1]
    # Two virtual stages halve the bubble of (p - 1) (F + B), messages and once-a-step costs apart.
    saved = plain - step_s[ScheduleName.INTERLEAVED, 2]
    assert saved == pytest.approx(3 * 2 * 0.033 / 2, rel=0.05)


def test_a_rank_holds_the_state_of_all_its_stages(cluster: Cluster) -> None:
    for schedule, virtual in VARIANTS:
        for stage in played(cluster, schedule, virtual).stages:
            assert stage.memory.optimizer_bytes == 8 * 2 * 20_000_000


def test_activations_of_virtual_stages_are_counted_when_they_are_most_together(cluster: Cluster) -> None:
    # Megatron: 2 (p - r - 1) + (v - 1) p + 1 chunks on rank r; each saves 100 bytes and hands on 10**6.
    held = [s.memory.activations_bytes for s in played(cluster, ScheduleName.INTERLEAVED, 2).stages]
    assert held[:3] == [(2 * (4 - r - 1) + 4 + 1) * (100 + 10**6) for r in range(3)]
    # ZB-V: at most 2p halves, the memory of the first rank of 1F1B.
    most = max(s.memory.activations_bytes for s in played(cluster, ScheduleName.ZBV, 2).stages)
    assert most <= 8 * (100 + 10**6)
    # ZB-H1: every rank as much as the first of 1F1B.
    held = [s.memory.activations_bytes for s in played(cluster, ScheduleName.ZERO_BUBBLE, 1).stages]
    assert held == [4 * (200 + 10**6)] * 3 + [4 * 200]


def test_tied_weights_on_one_rank_are_held_once(cluster: Cluster) -> None:
    tied = SharedParameter("w", (0, 7), 20_000_000)
    apart = played(cluster, ScheduleName.ZBV, 2)
    together = played(cluster, ScheduleName.ZBV, 2, shared=(tied,))
    # Stages 0 and 7 are both on rank 0: one copy, and nobody to add gradients up with.
    one = together.stages[0].memory
    assert one.gradients_bytes == apart.stages[0].memory.gradients_bytes // 2
    assert together.step_time_s <= apart.step_time_s
    across = played(cluster, ScheduleName.INTERLEAVED, 2, shared=(tied,))
    assert across.step_time_s > played(cluster, ScheduleName.INTERLEAVED, 2).step_time_s


def test_the_axis_inside_the_node_is_the_quick_one(cluster: Cluster) -> None:
    stages = ((heavy(output_bytes=10**9),),) * 2
    by_order = {
        order: predict(layout(stages, data=8, order=order), cluster, 80 * GiB).step_time_s
        for order in (("pipeline", "data", "tensor"), ("data", "pipeline", "tensor"))
    }
    # Large messages between stages, small gradients: the pipeline belongs inside the node.
    assert by_order["data", "pipeline", "tensor"] < by_order["pipeline", "data", "tensor"]
    stages = ((heavy(parameters=(ParameterShare("w", "replicate", 10**9, True),), output_bytes=10),),) * 2
    by_order = {
        order: predict(layout(stages, data=8, order=order), cluster, 80 * GiB).step_time_s
        for order in (("pipeline", "data", "tensor"), ("data", "pipeline", "tensor"))
    }
    assert by_order["data", "pipeline", "tensor"] > by_order["pipeline", "data", "tensor"]


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_a_shard_group_inside_the_node_trades_memory_for_time(cluster: Cluster, zero: int) -> None:
    big = block(parameters=(ParameterShare("w", "replicate", 400_000_000, True),))
    slow = replace(cluster, network=replace(cluster.network, bytes_per_s=2e9))
    results = {
        group: predict(layout(((big, big),), data=16, zero=(zero,), shard_group=group), slow, 80 * GiB)
        for group in (0, 16, 8, 4)
    }
    assert results[0] == results[16]
    state = [results[g].stages[0].memory.optimizer_bytes for g in (16, 8, 4)]
    assert state == [8 * 800_000_000 // g for g in (16, 8, 4)]
    if zero > 1:  # gathers and scatters of every micro-batch stay off the network
        assert results[8].step_time_s < results[16].step_time_s


def test_shard_groups_add_up_their_shards_across_groups(cluster: Cluster) -> None:
    training = Training(cluster, 16, 1, Precision.BF16, "adamw", shard_group=8)
    traffic = data_traffic(80_000_000, 0, training)
    reduce_scatter, all_reduce = CollectiveKind.REDUCE_SCATTER, CollectiveKind.ALL_REDUCE
    assert traffic.scatter_s == cluster.collective_s(reduce_scatter, 320_000_000, 8, 1)
    assert traffic.across_s == cluster.collective_s(all_reduce, 40_000_000, 2, 8)
    whole = data_traffic(80_000_000, 0, replace(training, shard_group=0))
    assert whole.across_s == 0


def test_groups_of_one_are_plain_replicas(cluster: Cluster) -> None:
    alone = predict(layout(((block(),),), data=16, zero=(3,), shard_group=1), cluster, 80 * GiB)
    assert alone == predict(layout(((block(),),), data=16, zero=(0,)), cluster, 80 * GiB)


def test_what_overlaps_less_sticks_out_more() -> None:
    traffic = [DataTraffic(gather_s=1.0, scatter_s=2.0, reduce_s=2.5)] * 3
    for zero in range(4):
        steps = [exposed(zero, traffic, [5.0] * 3, [9.0] * 3, overlap) for overlap in (1.0, 0.5, 0.0)]
        for part in ("forward_s", "backward_s", "step_s"):
            values = [getattr(e, part) for e in steps]
            assert values == sorted(values)
            assert values[1] == pytest.approx((values[0] + values[2]) / 2)
    assert exposed(0, traffic, [5.0] * 3, [9.0] * 3, 0.0).step_s == pytest.approx(3 * 2.5)
    assert exposed(3, traffic, [5.0] * 3, [9.0] * 3, 0.0).forward_s == pytest.approx(3 * 1.0)


def test_gradients_after_a_split_backward_have_nothing_to_hide_behind() -> None:
    traffic = [DataTraffic(0, scatter_s=1.0, reduce_s=2.0)] * 3
    assert exposed(0, traffic, [5.0] * 3, [9.0] * 3, 1.0, [0.0] * 3).step_s == pytest.approx(6.0)


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize(("schedule", "virtual"), VARIANTS)
def test_a_block_that_takes_longer_makes_no_step_shorter(
    cluster: Cluster, schedule: ScheduleName, virtual: int, zero: int
) -> None:
    # Adding up the gradients of a stage takes longer than its backward and that of the rank's next one.
    big = heavy(parameters=(ParameterShare("w", "replicate", 8 * 10**9, True),))
    blocks = [big] * 8
    per_stage = 4 // virtual

    def step_s(chain: list[BlockChoice]) -> float:
        stages = tuple(tuple(chain[i : i + per_stage]) for i in range(0, 8, per_stage))
        changes = {"pipeline": 2, "data": 4, "zero": (zero,) * 2 * virtual, "num_micro_batches": 1}
        whole = layout(stages, schedule=schedule, virtual=virtual, **changes)
        return predict(whole, cluster, 80 * GiB).step_time_s

    slower = replace(big, backward_compute_s=2 * big.backward_compute_s)
    for position in range(8):
        changed = [*blocks[:position], slower, *blocks[position + 1 :]]
        assert step_s(changed) >= step_s(blocks) * (1 - 1e-12)


def test_a_rank_sends_the_gradients_of_its_stages_one_after_the_other(cluster: Cluster) -> None:
    big = heavy(parameters=(ParameterShare("w", "replicate", 2 * 10**9, True),))
    whole = layout(((big, big),) * 4, pipeline=2, virtual=2, data=4, schedule=ScheduleName.INTERLEAVED)
    pieces = step_pieces(replace(whole, zero=(0,) * 4), cluster)
    both_s = 2 * cluster.collective_s(CollectiveKind.ALL_REDUCE, 2 * 10**9 * 4, 4)
    for rank, stages in enumerate(pieces.ranks):
        first = min(stages, key=lambda stage: pieces.ends_s[stage])
        first_s = pieces.ends_s[first] + pieces.seconds[first].sync_s
        assert pieces.synchronised_s(rank) == pytest.approx(first_s + both_s)


def test_offloading_the_optimizer_frees_its_state_and_costs_the_link(cluster: Cluster) -> None:
    big = block(parameters=(ParameterShare("w", "replicate", 10**9, True),))
    stays = predict(layout(((big,),)), cluster, 80 * GiB)
    away = predict(layout(((big,),), offload=("optimizer",)), cluster, 80 * GiB)
    assert away.stages[0].memory.optimizer_bytes == 0
    assert away.stages[0].memory.gradients_bytes == stays.stages[0].memory.gradients_bytes
    assert away.peak_host_bytes == (4 + 4 + 8) * 10**9  # masters, gradients, state
    host = cluster.device.host
    update_s = 80 * 10**9 / (host.memory_bytes_per_s / 8) + 8 * 10**9 / host.bytes_per_s
    assert away.step_time_s == pytest.approx(4 * 0.033 + update_s)


def test_offloading_parameters_leaves_two_blocks_on_the_device(cluster: Cluster) -> None:
    big = block(parameters=(ParameterShare("w", "replicate", 10**8, True),))
    away = predict(layout(((big,) * 4,), data=8, zero=(3,), offload=("parameters",)), cluster, 80 * GiB)
    memory = away.stages[0].memory
    assert (memory.parameters_bytes, memory.gradients_bytes, memory.optimizer_bytes) == (0, 0, 0)
    assert memory.transient_bytes == 50 + 2 * 2 * 10**8 + 2 * 10**8
    assert memory.host_bytes == 16 * 4 * 10**8 // 8
    assert away.step_time_s > predict(layout(((big,) * 4,), data=8, zero=(3,)), cluster, 1).step_time_s
    alone = predict(layout(((big,) * 4,), zero=(3,), offload=("parameters",)), cluster, 80 * GiB)
    assert alone.stages[0].memory.host_bytes == 16 * 4 * 10**8


def test_offloaded_activations_wait_in_host_memory(cluster: Cluster) -> None:
    big = block(saved_bytes=10**9)
    stays = predict(layout(((big,) * 8,), schedule=ScheduleName.GPIPE), cluster, 80 * GiB)
    away = predict(
        layout(((big,) * 8,), schedule=ScheduleName.GPIPE, offload=("activations",)), cluster, 80 * GiB
    )
    assert stays.stages[0].memory.activations_bytes == 4 * 8 * 10**9
    assert away.stages[0].memory.activations_bytes == 0
    assert away.stages[0].memory.transient_bytes == 50 + 2 * 10**9  # of a block and the one before it
    assert away.peak_host_bytes == 4 * 8 * 10**9
    move_s = 10**9 / cluster.device.host.bytes_per_s
    down, up = 8 * (move_s - 0.011), move_s + 7 * (move_s - 0.022)
    assert away.step_time_s - stays.step_time_s == pytest.approx(4 * (down + up))


def test_the_host_is_a_limit_too(cluster: Cluster) -> None:
    big = block(parameters=(ParameterShare("w", "replicate", 10**9, True),))
    away = predict(layout(((big,) * 5,), offload=("optimizer",)), cluster, 80 * GiB)
    assert away.host_limit_bytes == cluster.device.host.memory_bytes // 8
    assert away.peak_memory_bytes <= away.memory_limit_bytes
    assert away.fits
    host = replace(cluster.device.host, memory_bytes=GiB)
    small = replace(cluster, device=replace(cluster.device, host=host))
    assert not predict(layout(((big,) * 5,), offload=("optimizer",)), small, 80 * GiB).fits


def test_ranks_that_share_cores_do_not_wait_for_nothing() -> None:
    device = replace(load_device("cpu"), time_share=2.0)
    stages = ((block(),),) * 4
    alone = predict(
        layout(stages, num_micro_batches=1), make_cluster(replace(device, time_share=1.0), 1, 4), GiB
    )
    shared = predict(layout(stages, num_micro_batches=1), make_cluster(device, 1, 4), GiB)
    # One micro-batch: three of four ranks wait, and the one that computes has two devices' worth of cores.
    # What it sends is no quicker for that: of 33 ms a stage, 3 are collectives.
    assert shared.step_time_s == pytest.approx(alone.step_time_s - 4 * 0.030 / 2, rel=0.02)
    many = predict(layout(stages, num_micro_batches=64), make_cluster(device, 1, 4), GiB)
    assert many.step_time_s > 64 * 0.033


def test_messages_take_the_longer_the_more_stages_compute() -> None:
    busy, alone = SizeTable(((1e6, 1e6 / 8e-3),)), SizeTable(((1e6, 1e6 / 2e-3),))
    plain = make_cluster(replace(load_device("cpu"), time_share=2.0), 1, 4)
    cluster = replace(plain, intra_node=replace(plain.intra_node, messages=busy, messages_alone=alone))
    one = block(output_bytes=10**6)

    def message_s(num_micro_batches: int) -> float:
        pieces = step_pieces(layout(((one,),) * 4, num_micro_batches=num_micro_batches), cluster)
        assert len(set(pieces.message_s)) == 1
        return pieces.message_s[0]

    assert message_s(1) == pytest.approx(2e-3)  # nobody computes while one micro-batch is handed on
    between = [message_s(number) for number in (2, 3)]
    assert 2e-3 < between[0] < between[1] <= 8e-3
    assert message_s(64) == pytest.approx(8e-3)
    # With a core for each, all compute beside each other, and what was measured of all at once holds.
    apart = replace(cluster, device=replace(cluster.device, time_share=1.0))
    assert step_pieces(layout(((one,),) * 4), apart).message_s[0] == pytest.approx(8e-3)


def test_stages_pay_for_exchanging_and_for_sharded_state() -> None:
    device = load_device("cpu")
    slow = replace(device, exchange_s=1e-3, sharded_action_s=2e-3, sharded_step_s=5e-3)

    def more_s(stages: tuple[tuple[BlockChoice, ...], ...], **others: Any) -> tuple[float, float]:
        one = layout(stages, **others)
        before, after = (step_pieces(one, make_cluster(d, 1, 4)).seconds[0] for d in (device, slow))
        return after.forward_s - before.forward_s, after.update_s - before.update_s

    big = heavy()
    assert more_s(((big,),)) == pytest.approx((0.0, 0.0))
    assert more_s(((big,),) * 2) == pytest.approx((1e-3, 0.0))
    assert more_s(((big,),), data=4, zero=(1,)) == pytest.approx((2e-3, 5e-3))
    assert more_s(((big,),) * 2, data=2, zero=(1, 1)) == pytest.approx((3e-3, 5e-3))


def test_updates_share_cores_as_far_as_there_are_several() -> None:
    device = replace(load_device("cpu"), time_share=2.0, step_s=0.0)
    big, small = heavy(), block(parameters=())

    def update_s(*blocks: BlockChoice) -> float:
        pieces = step_pieces(layout(tuple((b,) for b in blocks)), make_cluster(device, 1, 4))
        return max(pieces.update_s(rank) for rank in range(4))

    training = training_of(layout(((big,),)), make_cluster(device, 1, 1))
    alone = stage_seconds((big,), training, 0).update_s
    assert update_s(big, big, big, big) == pytest.approx(alone)
    # Two cores: one update each takes half as long as when four share them; a third one fits beside in part.
    assert update_s(big, small, small, small) == pytest.approx(alone / 2)
    assert update_s(big, big, small, small) == pytest.approx(alone / 2)
    assert update_s(big, big, big, small) == pytest.approx(alone * 3 / 4)
