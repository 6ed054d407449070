"""The shipped cost models, the reading of device and cluster files, and the errors that they can hold."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from autopar.errors import CostModelError, UsageError
from autopar.hardware.catalog import (
    cost_models_folder,
    device_names,
    find_local_device,
    load_device,
    resolve_device_name,
)
from autopar.hardware.read_cluster import load_cluster
from autopar.hardware.read_device import read_device

NAMES = (
    "a100-sxm-40gb",
    "a100-sxm-80gb",
    "b200-sxm-180gb",
    "cpu",
    "h100-sxm-80gb",
    "h200-sxm-141gb",
    "jetson-orin-64gb",
    "l4-24gb",
    "mi300x-192gb",
    "rtx4090-24gb",
    "t4-16gb",
    "v100-sxm-32gb",
)


def test_the_named_devices_are_shipped() -> None:
    assert device_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_shipped_cost_models_are_consistent(name: str) -> None:
    device = load_device(name)
    assert device.name == name
    assert device.framework_reserved_bytes < device.memory_bytes / 3
    tables = [device.matmul_efficiency[p] for p in device.peak_flops_per_s]
    for table in tables:
        values = [value for _, value in table.points]
        assert values == sorted(values), "larger products are never less efficient"
    for small, large in pairwise(device.intra_node.curves):
        assert small.num_ranks < large.num_ranks
    if name != "cpu":
        # Vendors count GB = 1e9 or GiB; drivers report at most the latter.
        assert device.memory_bytes <= int(name.rsplit("-", 1)[1].removesuffix("gb")) * 2**30


@pytest.mark.parametrize(
    ("name", "precision"), [("v100", "fp16"), ("t4", "fp16"), ("a100-sxm-40", "bf16"), ("cpu", "fp32")]
)
def test_default_precision(name: str, precision: str) -> None:
    device = load_device(name)
    assert device.default_precision == precision
    assert device.supports(precision)


def test_devices_without_bf16_do_not_support_it() -> None:
    assert [n for n in NAMES if not load_device(n).supports("bf16")] == ["cpu", "t4-16gb", "v100-sxm-32gb"]


def test_unique_prefixes() -> None:
    assert resolve_device_name("t4") == "t4-16gb"
    assert resolve_device_name("H100") == "h100-sxm-80gb"
    with pytest.raises(UsageError, match="'a100' is ambiguous: it may be a100-sxm-40gb or a100-sxm-80gb"):
        resolve_device_name("a100")
    with pytest.raises(
        UsageError, match=r"unknown device 'h10O'; did you mean 'h100'.*known: a100-sxm-40gb, "
    ):
        resolve_device_name("h10O")
    with pytest.raises(UsageError, match="unknown device ''"):
        resolve_device_name("")
    with pytest.raises(UsageError, match="looks like a file"):
        load_device("nowhere/gpu.yaml")


def test_the_gpu_of_a_machine_is_found_by_its_driver_name() -> None:
    found = find_local_device("NVIDIA H100 80GB HBM3")
    assert found is not None and found.name == "h100-sxm-80gb"
    assert find_local_device("GeForce GTX 680") is None
    assert find_local_device(None) is None


def edited(tmp_path: Path, *edits: tuple[str, str]) -> Path:
    text = (cost_models_folder() / "t4-16gb.yaml").read_text()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


PEAK = "fp32: {value: 8.1, unit: TFLOP/s, source: S9, conf: B}"


@pytest.mark.parametrize(
    ("old", "new", "at", "message"),
    [
        ("launch:", "lunch:", "lunch:", "unknown key 'lunch' in 'compute'; did you mean 'launch'"),
        (PEAK, PEAK.replace("TFLOP/s", "GFLOP/s"), "fp32: {value", "'GFLOP/s' .* must be 'TFLOP/s'"),
        (PEAK, PEAK.replace("8.1", "eight"), "fp32: {value", "must be a number, not the text 'eight'"),
        (PEAK, PEAK.replace("8.1", "8e1"), "fp32: {value", "YAML wants a point and a sign in it: 1.0e.9"),
        (PEAK, PEAK.replace("8.1", "-8.1"), "fp32: {value", "must be positive"),
        (PEAK, PEAK.replace("8.1", "null"), "fp32: {value", "every device computes in fp32"),
        (PEAK, PEAK.replace("S9", "S99"), "fp32: {value", "source 'S99' .* did you mean 'S9'"),
        (PEAK, PEAK.replace(", unit: TFLOP/s", ""), "fp32: {value", "'compute.peak.fp32.unit' is missing"),
        (PEAK, "", "peak:", "'compute.peak.fp32' is missing"),
        ("kind: gpu", "kind: tpu", "kind: tpu", "must be 'gpu' or 'cpu'"),
        ("version: 1", "version: 2", "version: 2", "version 1 of cost models"),
        ("[128, ", "[32, ", "[32, ", "sizes must ascend, but 32 follows 64"),
        ("launch: {value: 6, unit: us", "launch: 6 #", "launch: 6", "'compute.launch' must be a mapping"),
    ],
)
def test_wrong_cost_models_are_refused_at_their_line(
    tmp_path: Path, old: str, new: str, at: str, message: str
) -> None:
    path = edited(tmp_path, (old, new))
    with pytest.raises(CostModelError, match=message) as caught:
        read_device(path)
    lines = path.read_text().splitlines()
    found = next(i + 1 for i, line in enumerate(lines) if at in line)
    assert caught.value.line == found
    assert str(caught.value).startswith(f"{path}:{found}:{caught.value.column}: ")


def test_efficiency_above_one_is_refused(tmp_path: Path) -> None:
    path = edited(
        tmp_path, ("efficiency: {value: 0.8, unit: fraction", "efficiency: {value: 80, unit: fraction")
    )
    with pytest.raises(CostModelError, match="a fraction is at most 1"):
        read_device(path)


def test_cluster_file_overrides_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "version: 1\ndevice: a100-sxm-80\nnodes: 3\n"
        "memory: {capacity: {value: 60, unit: GiB}}\n"
        "network: {bandwidth_per_device: {value: 12.5, unit: GB/s}}\n"
    )
    cluster = load_cluster(path)
    usual = load_device("a100-sxm-80gb")
    assert (cluster.num_devices, cluster.devices_per_node) == (24, 8)
    assert cluster.network.bytes_per_s == 12.5e9
    assert cluster.network.latency_s == usual.network.latency_s
    assert cluster.device.memory_bytes == 60 * 2**30
    assert cluster.intra_node.curves == usual.intra_node.curves


def test_cluster_file_with_another_link_scales_the_measured_curves(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "version: 1\ndevice: a100-sxm-80gb\nnodes: 1\ndevices_per_node: 4\n"
        "intra_node: {bandwidth: {value: 30, unit: GB/s}}\n"
    )
    link, usual = load_cluster(path).intra_node, load_device("a100-sxm-80gb").intra_node
    assert link.ring_bytes_per_s == pytest.approx(30e9 * 229.25 / 300)
    for curve, before in zip(link.curves, usual.curves, strict=True):
        largest, rate = before.bytes_per_s.points[-1]
        assert curve.bytes_per_s.points[-1] == (largest, pytest.approx(rate / 10, rel=0.01))


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("version: 1\ndevice: h10\nnodes: 0\n", 3, "'nodes' must be a positive integer, not 0"),
        ("version: 1\ndevice: x99\nnodes: 1\n", 2, "unknown device 'x99'"),
        ("version: 1\ndevice: h100\nnodes: 1\nspeed: 9\n", 4, "unknown key 'speed'"),
        ("version: 1\ndevice: h100\n", 1, "'nodes' is missing"),
        ("- 1\n", 1, "the file must be a mapping"),
    ],
)
def test_wrong_cluster_files(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text.replace("h10\n", "h100\n"))
    with pytest.raises(CostModelError, match=message) as caught:
        load_cluster(path)
    assert caught.value.line == line
