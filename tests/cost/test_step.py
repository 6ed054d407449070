"""Step time and memory of whole layouts against hand-computed cases."""

from __future__ import annotations

import pytest

from autopar.cost.choice import ParameterShare
from autopar.cost.layout import SharedParameter
from autopar.cost.parameter_state import parameter_bytes
from autopar.cost.stage_memory import stage_memory
from autopar.cost.stage_time import stage_seconds
from autopar.cost.step import predict
from autopar.cost.synchronisation import DataTraffic, exposed
from autopar.cost.training import Training
from autopar.errors import UsageError
from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import Cluster, make_cluster
from autopar.hardware.link import CollectiveKind
from autopar.plan.decisions import Precision, ScheduleName
from tests.cost.layouts import GiB, block, layout


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return make_cluster(load_device("a100-sxm-80gb"), 2)


def test_one_device_adds_up(cluster: Cluster) -> None:
    prediction = predict(layout(((block(), block()),)), cluster, 80 * GiB)
    update = 2000 * (80 + 6) / cluster.device.effective_memory_bytes_per_s
    assert prediction.step_time_s == pytest.approx(4 * 2 * 0.033 + update)
    assert prediction.samples_per_s == pytest.approx(8 / prediction.step_time_s)
    assert prediction.mfu == pytest.approx(3 * 2 * 4 * 1e12 / (prediction.step_time_s * 312e12))
    (stage,) = prediction.stages
    assert stage.comm_s == pytest.approx(4 * 2 * 0.003)
    assert stage.idle_s == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("schedule", [ScheduleName.GPIPE, ScheduleName.ONE_F_ONE_B])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_parts_of_every_stage_add_up_to_the_step(cluster: Cluster, schedule: ScheduleName, zero: int) -> None:
    heavy = block(parameters=(ParameterShare("w", "replicate", 50_000_000, True),), output_bytes=10**7)
    stages = ((block(), heavy), (heavy,), (heavy, block(forward_compute_s=0.05)))
    tied = SharedParameter("w", (1, 3), 50_000_000)
    whole = layout(stages, data=4, zero=(zero,) * 3, schedule=schedule, shared=(tied,))
    prediction = predict(whole, cluster, 80 * GiB)
    for stage in prediction.stages:
        total = stage.compute_s + stage.comm_s + stage.idle_s
        assert total == pytest.approx(prediction.step_time_s)
        assert min(stage.compute_s, stage.comm_s, stage.idle_s) >= 0
    assert prediction.peak_memory_bytes == max(s.memory.total_bytes for s in prediction.stages)


def test_pipeline_bubble(cluster: Cluster) -> None:
    prediction = predict(layout(((block(),),) * 4, num_micro_batches=8), cluster, 80 * GiB)
    p2p_s = cluster.p2p_s(0, 0, 1)
    assert prediction.step_time_s == pytest.approx((8 + 3) * 0.033 + 6 * p2p_s, rel=0.01)
    # A full stage's bubble is (p - 1) (f + b) and the messages on its critical path.
    assert prediction.stages[0].idle_s == pytest.approx(3 * 0.033 + 6 * p2p_s, rel=0.1)


def test_activations_count_the_micro_batches_in_flight(cluster: Cluster) -> None:
    stages = ((block(),),) * 3
    held = [s.memory.activations_bytes for s in predict(layout(stages), cluster, 1).stages]
    assert held == [300, 200, 100]
    held = [
        s.memory.activations_bytes
        for s in predict(layout(stages, schedule=ScheduleName.GPIPE), cluster, 1).stages
    ]
    assert held == [400, 400, 400]


def test_values_handed_on_are_kept_until_their_gradient_returns(cluster: Cluster) -> None:
    stages = ((block(output_bytes=7),),) * 3
    memory = [s.memory for s in predict(layout(stages, carried_bytes=(0, 5)), cluster, 1).stages]
    assert [m.activations_bytes for m in memory] == [3 * 107, 2 * 112, 100]
    reserved = cluster.device.framework_reserved_bytes
    assert [m.reserved_bytes - reserved for m in memory] == [2 * 7, 2 * (7 + 12), 2 * 12]


@pytest.mark.parametrize(
    ("zero", "precision", "expected"),
    [
        (0, Precision.FP32, (4000, 4000, 8000)),
        (0, Precision.BF16, (6000, 4000, 8000)),
        (1, Precision.BF16, (2500, 4000, 1000)),
        (2, Precision.BF16, (2500, 500, 1000)),
        (1, Precision.FP32, (4500, 4000, 1000)),
        (3, Precision.BF16, (500, 500, 1000)),
        (3, Precision.FP32, (500, 500, 1000)),
    ],
)
def test_parameter_state_by_zero_level(
    zero: int, precision: Precision, expected: tuple[int, int, int]
) -> None:
    state = parameter_bytes(1000, 0, zero, 8, precision, "adamw")
    assert (state.parameters, state.gradients, state.optimizer) == expected


def test_frozen_parameters_have_neither_gradient_nor_state() -> None:
    state = parameter_bytes(0, 1000, 0, 1, Precision.FP16, "sgd-momentum")
    assert (state.parameters, state.gradients, state.optimizer) == (6000, 0, 0)


def test_unknown_optimizer_names_the_closest() -> None:
    with pytest.raises(UsageError, match="unknown optimizer 'adamwx'; did you mean 'adamw'"):
        parameter_bytes(1, 0, 0, 1, Precision.FP32, "adamwx")


def test_a_tied_parameter_counts_once_on_a_stage_and_once_on_each_of_two(cluster: Cluster) -> None:
    tied = SharedParameter("w", (0, 2), 1000)
    one = predict(layout(((block(), block(), block()),), shared=(tied,)), cluster, 1)
    assert one.stages[0].memory.gradients_bytes == 4 * 2000
    two = predict(layout(((block(), block()), (block(),)), shared=(tied,)), cluster, 1)
    assert [s.memory.gradients_bytes for s in two.stages] == [8000, 4000]
    alone = predict(layout(((block(), block()), (block(),))), cluster, 1)
    all_reduce_s = cluster.collective_s(CollectiveKind.ALL_REDUCE, 4000, 2, 1)
    assert two.step_time_s - alone.step_time_s == pytest.approx(all_reduce_s)


def test_zero_3_holds_whole_parameters_of_two_blocks_only(cluster: Cluster) -> None:
    training = Training(cluster, 8, 1, Precision.BF16, "sgd")
    small = block(parameters=(ParameterShare("w", "replicate", 100, True),))
    memory = stage_memory((block(), small, block(), block()), training, 3, 1)
    assert memory.parameters_bytes == 4 * (3100 + 4) // 8
    assert memory.transient_bytes == 50 + 2 * 2000 + 2000


def test_the_update_may_be_the_peak(cluster: Cluster) -> None:
    big = block(parameters=(ParameterShare("w", "replicate", 10**6, True),), saved_bytes=1000)
    memory = stage_memory((big,), Training(cluster, 1, 1, Precision.FP32, "adamw"), 0, 1)
    assert memory.transient_bytes + memory.activations_bytes == 4 * 10**6


def test_gradients_hide_behind_the_backward_of_earlier_blocks() -> None:
    traffic = [DataTraffic(0, 0, reduce_s=s) for s in (1.0, 2.0, 5.0)]
    # Backward runs block 2, 1, 0 for 1 s each: 5 s of block 2 start at 1, then 2 and 1; 9 - 3 stick out.
    assert exposed(0, traffic, [1.0] * 3, [1.0] * 3).step_s == pytest.approx(6.0)
    # Only the last to finish sticks out when the others are short.
    traffic = [DataTraffic(0, 0, reduce_s=s) for s in (1.0, 0.1, 0.1)]
    assert exposed(0, traffic, [1.0] * 3, [1.0] * 3).step_s == pytest.approx(1.0)


def test_zero_3_exposes_what_compute_does_not_hide() -> None:
    traffic = [DataTraffic(gather_s=g, scatter_s=s, reduce_s=0) for g, s in ((1.0, 2.0), (3.0, 0.5))]
    result = exposed(3, traffic, [2.0, 2.0], [4.0, 2.0])
    # Forward: block 0 (2 s) hides 3 s of block 1's gather; block 1 (2 s) hides block 0's next.
    assert result.forward_s == pytest.approx(1.0)
    # Backward: block 1 (2 s) beside gather and scatter of 0 (1 + 2 s); block 0 (4 s) beside 3 + 0.5 s.
    assert result.backward_s == pytest.approx(1.0)
    assert result.step_s == pytest.approx(1.0 + 2.0)


def test_stage_seconds_of_zero_0_have_no_data_traffic_in_micro_batches(cluster: Cluster) -> None:
    seconds = stage_seconds((block(), block()), Training(cluster, 16, 1, Precision.BF16, "adamw"), 0)
    assert seconds.forward_s == pytest.approx(0.022)
    assert seconds.backward_s == pytest.approx(0.044)
    assert seconds.sync_s > 0


def test_more_data_ranks_never_slow_a_micro_batch_under_zero_0(cluster: Cluster) -> None:
    one = predict(layout(((block(),),)), cluster, 1)
    many = predict(layout(((block(),),), data=16), cluster, 1)
    assert one.step_time_s < many.step_time_s
    assert many.samples_per_s > 14 * one.samples_per_s
