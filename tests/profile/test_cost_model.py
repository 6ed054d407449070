from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from autopar.hardware.blocks import Slowdown
from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import make_cluster
from autopar.hardware.device import Device
from autopar.hardware.link import CollectiveKind
from autopar.hardware.read_cluster import load_cluster
from autopar.profile.cost_model import cost_model_document, cost_model_text
from autopar.profile.overheads import OverheadResult, Steps
from autopar.profile.settings import ProfileResult
from tests.profile.made_up import SIZES, block_times, made_up_profile, spread


def written(result: ProfileResult, folder: Path) -> Device:
    path = folder / "here.yaml"
    path.write_text(cost_model_text(result, "here"))
    return load_device(str(path))


def test_file_reads_back_what_was_measured(tmp_path: Path) -> None:
    halves = replace(block_times("abc-4", 6e-4, 1e-3), degree=2, slowdown=Slowdown(1.5, 1.25))
    whole = replace(block_times("abc-4", 1e-3, 2e-3), update=spread(7e-3))
    result = made_up_profile(blocks=(whole, halves))
    device = written(result, tmp_path)
    assert device.name == "here" and device.kind == "cpu" and device.default_devices_per_node == 4
    assert yaml.safe_load((tmp_path / "here.yaml").read_text()) == cost_model_document(result, "here")
    assert device.memory_bytes == 2 * 2**30  # an even share of the host's
    assert device.time_share == 2 and device.overlap == 0
    assert device.launch_s == pytest.approx(1e-5)
    assert device.memory_s(33554432) == pytest.approx(33554432 / 5e9)
    assert device.memory_s(65536) == pytest.approx(65536 / 10e9)
    assert device.update_bytes_per_s == pytest.approx(4e9, rel=1e-3)
    assert [device.update_weight(n) for n in (2**18, 2**23, 2**25)] == pytest.approx([1, 2, 2], rel=1e-3)
    block = device.blocks["abc-4"]
    assert (block.forward_s, block.backward_s, block.update_s) == pytest.approx((1e-3, 2e-3, 7e-3))
    assert block.sharded == {2: Slowdown(1.5, 1.25)}
    assert not device.supports("bf16") and device.supports("fp32")


def test_products_take_as_long_as_measured(tmp_path: Path) -> None:
    result = made_up_profile()
    device = written(result, tmp_path)
    for (precision, edge), found in result.compute.products.items():
        rate = device.matmul_flops_per_s(precision, edge, edge)
        assert 2 * edge**3 / rate == pytest.approx(found.median_s, rel=0.02), edge


def test_short_sums_cost_what_was_measured(tmp_path: Path) -> None:
    device = written(made_up_profile(), tmp_path)
    (short, flops, few), (long, _, many) = (
        made_up_profile().compute.short_product,
        made_up_profile().compute.long_product,
    )
    edge = (flops / 2) ** (1 / 3)
    ratio = device.matmul_flops_per_s("fp32", edge, many) / device.matmul_flops_per_s("fp32", edge, few)
    assert ratio == pytest.approx(short.median_s / long.median_s, rel=0.05)


def test_matmul_rates_grow_with_size(tmp_path: Path) -> None:
    device = written(made_up_profile(), tmp_path)
    assert all(0 < value <= 1 for _, value in device.matmul_efficiency["fp32"].points)
    rates = [device.matmul_flops_per_s("fp32", edge, edge) for edge in (16, 32, 64, 128, 256, 512, 1024)]
    assert all(0 < below < above for below, above in pairwise(rates))


@pytest.mark.parametrize("kind", [k for k in CollectiveKind if k is not CollectiveKind.BROADCAST])
@pytest.mark.parametrize("size", [2, 4])
def test_collectives_take_as_long_as_measured(tmp_path: Path, kind: CollectiveKind, size: int) -> None:
    result = made_up_profile()
    cluster = make_cluster(written(result, tmp_path))
    for num_bytes in SIZES:
        expected_s = result.communication.collectives[kind, size, num_bytes].median_s
        assert cluster.collective_s(kind, num_bytes, size) == pytest.approx(expected_s, rel=2e-3)


def test_messages_take_as_long_as_measured(tmp_path: Path) -> None:
    result = made_up_profile()
    cluster = make_cluster(written(result, tmp_path))
    for num_bytes in SIZES:
        expected_s = result.communication.messages[num_bytes].median_s
        assert cluster.p2p_s(num_bytes, 0, 1) == pytest.approx(expected_s, rel=2e-3)
    assert cluster.p2p_s(8, 0, 1) == pytest.approx(2e-5, rel=0.01)  # no less than its latency


def test_messages_take_less_where_nobody_computes(tmp_path: Path) -> None:
    result = made_up_profile()
    cluster = make_cluster(written(result, tmp_path))
    for num_bytes in SIZES:
        busy_s = result.communication.messages[num_bytes].median_s
        found = [cluster.axis_p2p_s(num_bytes, 0, 1, 4, 1, busy) for busy in (0.0, 0.5, 1.0)]
        assert found == pytest.approx([busy_s / 2, 0.75 * busy_s, busy_s], rel=2e-3)


def test_updates_are_of_one_rate_where_one_size_was_measured(tmp_path: Path) -> None:
    result = made_up_profile()
    compute = replace(result.compute, updates={2**26: (spread(2**26 * 80 / 8e9), 2**26)})
    device = written(replace(result, compute=compute), tmp_path)
    assert device.update_bytes_per_s == pytest.approx(8e9, rel=1e-3) and device.update_rates is None
    assert device.update_weight(1) == device.update_weight(2**30) == 1


def test_processes_with_cores_of_their_own_share_none(tmp_path: Path) -> None:
    assert written(made_up_profile(num_cores=8), tmp_path).time_share == 1


def test_only_steps_in_which_ranks_wait_hold_an_all_reduce(tmp_path: Path) -> None:
    # 2 ms less a micro-batch of (10 - 2) / 16 ms; timed by processor time where ranks share cores.
    assert written(made_up_profile(), tmp_path).step_s == pytest.approx(1.5e-3)
    assert written(made_up_profile(num_cores=8), tmp_path).step_s == pytest.approx(1.3e-3, rel=1e-3)


def test_exchanges_and_sharded_state_cost_what_they_add(tmp_path: Path) -> None:
    assert written(made_up_profile(), tmp_path).exchange_s == 0
    plain = Steps(spread(2e-3), spread(10e-3))
    piped, sharded = Steps(spread(2e-3), spread(26e-3)), Steps(spread(6e-3), spread(30e-3))
    overheads = OverheadResult(plain, sharded, piped)
    device = written(replace(made_up_profile(), overheads=overheads), tmp_path)
    # Half a millisecond for a micro-batch; one more with messages, one more under ZeRO.
    assert device.exchange_s == pytest.approx(0.5e-3)
    assert device.sharded_action_s == pytest.approx(0.5e-3)
    assert device.sharded_step_s == pytest.approx(3e-3)


def test_parameters_on_a_tensor_axis_cost_what_they_add(tmp_path: Path) -> None:
    assert written(made_up_profile(), tmp_path).tensor_parameter_s == 0
    chain, tensor = Steps(spread(2e-3), spread(10e-3)), Steps(spread(3e-3), spread(27e-3))
    overheads = OverheadResult(chain, chain=chain, tensor=tensor, num_chained=8)
    device = written(replace(made_up_profile(), overheads=overheads), tmp_path)
    # A millisecond for a micro-batch, which reads eight parameters and makes their gradients.
    assert device.tensor_parameter_s == pytest.approx(1e-3 / 2 / 8)


def test_one_process_borrows_what_needs_two(tmp_path: Path) -> None:
    device = written(made_up_profile(num_processes=1), tmp_path)
    assert device.intra_node.bytes_per_s == load_device("cpu").intra_node.bytes_per_s
    document = yaml.safe_load((tmp_path / "here.yaml").read_text())
    assert document["intra_node"]["latency"]["source"] == "P2"
    assert "not measured" in document["sources"]["P2"]


def test_file_says_when_and_how_it_was_measured() -> None:
    text = cost_model_text(made_up_profile(), "here")
    source = yaml.safe_load(text)["sources"]["P1"]
    for part in (
        "2026-01-01",
        "Some CPU @ 2 GHz",
        "torch 2",
        "4 processes",
        "3 x 3 repetitions",
        "load before 0.1",
    ):
        assert part in source
    assert "10% to 90%" in text


def test_cluster_files_take_a_measured_device(tmp_path: Path) -> None:
    written(made_up_profile(), tmp_path)
    (tmp_path / "cluster.yaml").write_text("version: 1\ndevice: here.yaml\nnodes: 2\ndevices_per_node: 4\n")
    cluster = load_cluster(tmp_path / "cluster.yaml")
    assert cluster.num_devices == 8 and cluster.device.time_share == 2
