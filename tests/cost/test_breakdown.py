"""The terms of a step against the step itself; the timeline and the memory curves against the prediction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest

from autopar.cost.breakdown import TERMS, break_down
from autopar.cost.layout import Layout, SharedParameter
from autopar.cost.layout_memory import rank_memories
from autopar.cost.memory_over_time import memory_over_time
from autopar.cost.step import predict
from autopar.cost.step_timeline import SpanKind, step_timeline
from autopar.cost.training import training_of
from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import Cluster, make_cluster
from tests.cost.layouts import VARIANTS, GiB, block, four_ranks, heavy, layout

OFFLOADS = ((), ("optimizer",), ("parameters",), ("activations",))
TIED = SharedParameter("w", (0, 7), 20_000_000)


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return make_cluster(load_device("a100-sxm-80gb"), 2)


@pytest.fixture(scope="module")
def shared_cores() -> Cluster:
    return make_cluster(replace(load_device("cpu"), time_share=2.0, action_s=1e-4, step_s=1e-3))


def varied() -> Iterator[Layout]:
    """Every schedule with every ZeRO level, uneven stages, offload, tied parameters."""
    for schedule, virtual in VARIANTS:
        for zero in range(4):
            for offload in OFFLOADS:
                if "parameters" in offload and zero < 3:
                    continue
                whole = four_ranks(
                    schedule,
                    virtual,
                    data=4,
                    zero=(zero,) * 4 * virtual,
                    offload=offload,
                    shared=(TIED,) if virtual == 1 else (),
                )
                slow = heavy(
                    forward_host_s=0.002, recompute_s=0.004, recompute_comm_s=0.001, saved_bytes=10**8
                )
                yield replace(whole, stages=((*whole.stages[0][:-1], slow), *whole.stages[1:]))


@pytest.mark.parametrize("which", ["cluster", "shared_cores"])
def test_terms_of_every_rank_add_up_to_the_predicted_step(which: str, request: pytest.FixtureRequest) -> None:
    cluster = request.getfixturevalue(which)
    for whole in varied():
        prediction, found = predict(whole, cluster, 80 * GiB), break_down(whole, cluster)
        assert found.step_time_s == prediction.step_time_s
        for terms in found.ranks:
            assert terms.total_s == pytest.approx(prediction.step_time_s, rel=1e-9), whole.schedule
            assert min(terms.seconds(name) for name in TERMS) >= 0
        assert found.terms.waiting_s == pytest.approx(0, abs=1e-12)


def test_terms_are_the_parts_of_the_blocks(cluster: Cluster) -> None:
    whole = layout(((block(recompute_s=0.005, forward_host_s=0.004, backward_host_s=0.001),),))
    (terms,) = break_down(whole, cluster).ranks
    assert terms.forward_s == pytest.approx(4 * 0.006)
    assert terms.backward_s == pytest.approx(4 * 0.014)
    assert terms.recompute_s == pytest.approx(4 * 0.005)
    assert terms.host_s == pytest.approx(4 * 0.005 + cluster.device.step_s + 8 * cluster.device.action_s)
    assert terms.tensor_s == pytest.approx(4 * 0.003)
    assert terms.bubble_s == terms.message_s == terms.sync_s == 0


def test_messages_cost_what_the_step_would_be_shorter_without_them(cluster: Cluster) -> None:
    whole = layout(((heavy(output_bytes=10**8),), (heavy(output_bytes=0),)), num_micro_batches=6)
    silent = replace(whole, stages=((heavy(output_bytes=0),), (heavy(output_bytes=0),)))
    with_them, without = break_down(whole, cluster), break_down(silent, cluster)
    lost_s = with_them.step_time_s - without.step_time_s
    assert with_them.terms.message_s - without.terms.message_s == pytest.approx(lost_s, rel=1e-6)
    assert with_them.terms.bubble_s == pytest.approx(without.terms.bubble_s)
    assert with_them.terms.bubble_s == pytest.approx(0.033)  # (p - 1) (F + B)


@pytest.mark.parametrize("zero", range(4))
def test_what_is_hidden_and_what_sticks_out_are_all_that_is_sent(cluster: Cluster, zero: int) -> None:
    whole = layout(((heavy(),) * 4,), data=8, zero=(zero,))
    sent_s, hidden_s = [], []
    for overlap in (0.0, 0.5, 1.0):
        device = replace(cluster.device, overlap=overlap)
        found = break_down(whole, replace(cluster, device=device))
        hidden_s.append(found.hidden[0].data_s)
        sent_s.append(found.hidden[0].data_s + found.terms.data_s + found.terms.sync_s)
    # The first gather of a step waits for itself and yet counts in the last micro-batch.
    assert sent_s == pytest.approx([sent_s[0]] * 3, rel=0.2)
    assert hidden_s[0] < hidden_s[1] < hidden_s[2]


def test_timeline_ends_when_the_step_does_and_never_overlaps_itself(cluster: Cluster) -> None:
    for whole in varied():
        timeline = step_timeline(whole, cluster)
        assert timeline.step_time_s == predict(whole, cluster, 80 * GiB).step_time_s
        assert max(span.end_s for lane in timeline.lanes for span in lane) == pytest.approx(
            timeline.step_time_s
        )
        for lane in timeline.lanes:
            actions = [span for span in lane if span.micro_batch is not None]
            assert all(one.end_s <= two.start_s + 1e-12 for one, two in pairwise(actions))
            assert all(0 <= span.comm_s <= span.end_s - span.start_s + 1e-12 for span in lane)
            assert {span.kind for span in lane} >= {SpanKind.FORWARD, SpanKind.UPDATE}


def test_the_highest_point_of_a_memory_curve_is_the_predicted_memory(cluster: Cluster) -> None:
    for whole in varied():
        memory = rank_memories(whole, training_of(whole, cluster))
        curves = memory_over_time(whole, cluster, step_timeline(whole, cluster))
        for curve, predicted in zip(curves, memory, strict=True):
            assert max(num_bytes for _, num_bytes in curve) == predicted.total_bytes
            assert curve[-1][1] == curve[0][1] == predicted.total_bytes - predicted.activations_bytes
