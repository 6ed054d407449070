"""Reads a cluster file: a device, how many, and what differs from the device's usual node.

::

    version: 1
    device: a100-sxm-80gb            # a name, a unique prefix, or a path relative to this file
    nodes: 16
    devices_per_node: 8
    network: {bandwidth_per_device: {value: 12.5, unit: GB/s}}   # any number of the cost model's link
        sections
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from autopar.errors import CostModelError, UsageError
from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import Cluster
from autopar.hardware.device import Device
from autopar.hardware.fields import Fields
from autopar.hardware.keys import CLUSTER
from autopar.hardware.link import IntraNodeLink, NetworkLink
from autopar.hardware.other_link import with_other_numbers
from autopar.hardware.yaml_lines import read_yaml


def load_cluster(path: str | Path) -> Cluster:
    """Reads a cluster file.

    Raises:
        CostModelError: the file is malformed or names an unknown device; the message starts with ``path:line:
        ``.
    """
    problems: list[CostModelError] = []
    document, places = read_yaml(path, CostModelError, problems)
    top = Fields.of(str(path), document, places, None)
    problems += CLUSTER.inside(top)
    if problems:
        raise CostModelError.of(problems)
    device = _device(top)
    per_node = top.count("devices_per_node") if "devices_per_node" in top.values else None
    intra_node, network = _links(top, device)
    return Cluster(
        device=device,
        nodes=top.count("nodes"),
        devices_per_node=per_node or device.default_devices_per_node,
        intra_node=intra_node,
        network=network,
        path=str(path),
    )


def _device(top: Fields) -> Device:
    name = top.text("device")
    if name.endswith((".yaml", ".yml")):
        name = str(Path(top.path).parent / name)
    try:
        device = load_device(name)
    except UsageError as problem:
        raise top.problem("device", str(problem)) from problem
    memory = top.section("memory", required=False)
    if "capacity" in memory.values:
        device = replace(device, memory_bytes=int(memory.number("capacity", "GiB")))
    return device


def _links(top: Fields, device: Device) -> tuple[IntraNodeLink, NetworkLink]:
    intra = top.section("intra_node", required=False)
    link = with_other_numbers(
        device.intra_node,
        intra.optional_number("bandwidth", "GB/s"),
        intra.optional_number("ring_bandwidth", "GB/s"),
        intra.optional_number("latency", "us"),
    )
    net = top.section("network", required=False)
    given = _given(net)
    network = replace(
        device.network,
        bytes_per_s=given("bandwidth_per_device", "GB/s", device.network.bytes_per_s),
        efficiency=given("efficiency", "fraction", device.network.efficiency),
        latency_s=given("latency", "us", device.network.latency_s),
    )
    return link, network


def _given(fields: Fields) -> Callable[[str, str, float], float]:
    def value(key: str, unit: str, otherwise: float) -> float:
        return fields.number(key, unit) if key in fields.values else otherwise

    return value
