"""Reads a cost-model file into a Device. Strict: what is not understood is an error at ``file:line``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from autopar.errors import CostModelError
from autopar.hardware.blocks import MeasuredBlock, Slowdown
from autopar.hardware.device import PRECISIONS, Device
from autopar.hardware.fields import Fields
from autopar.hardware.keys import DEVICE, OWN_CURVES
from autopar.hardware.link import BusCurve, CollectiveKind, HostLink, IntraNodeLink, NetworkLink
from autopar.hardware.tables import SizeTable
from autopar.hardware.yaml_lines import read_yaml


def read_device(path: str | Path) -> Device:
    """Reads a cost-model file.

    Raises:
        CostModelError: the file is malformed; the message starts with ``path:line: ``.
    """
    problems: list[CostModelError] = []
    document, places = read_yaml(path, CostModelError, problems)
    unsourced = Fields.of(str(path), document, places, None)
    cited = unsourced.values.get("sources")
    sources = frozenset(cited) if isinstance(cited, dict) else frozenset()
    top = Fields.of(str(path), document, places, sources)
    problems += DEVICE.inside(top)
    if problems:
        raise CostModelError.of(problems)
    compute, memory = top.section("compute"), top.section("memory")
    peaks, efficiency = _compute(compute)
    return Device(
        name=top.text("name"),
        description=top.text("description"),
        kind=top.text("kind"),
        detected_as=top.texts("detected_as"),
        peak_flops_per_s=peaks,
        matmul_efficiency=efficiency,
        matmul_overhead_elements=compute.number("matmul_overhead", "elements"),
        attention_efficiency=compute.number("attention_efficiency", "fraction"),
        memory_bytes=int(memory.number("capacity", "GiB")),
        framework_reserved_bytes=int(memory.number("framework_reserve", "GiB")),
        memory_bytes_per_s=memory.number("bandwidth", "GB/s"),
        memory_efficiency=memory.number("efficiency", "fraction"),
        launch_s=compute.number("launch", "us"),
        dispatch_s=compute.number("dispatch", "us"),
        intra_node=_intra_node(top.section("intra_node")),
        network=_network(top.section("network")),
        host=_host(top.section("host")),
        default_devices_per_node=int(top.number("default_devices_per_node", "devices")),
        path=str(path),
        time_share=compute.optional_number("time_share", "devices") or 1.0,
        overlap=_overlap(compute),
        action_s=compute.optional_number("action", "us") or 0.0,
        step_s=compute.optional_number("step", "us") or 0.0,
        exchange_s=compute.optional_number("exchange", "us") or 0.0,
        sharded_action_s=compute.optional_number("sharded_action", "us") or 0.0,
        sharded_step_s=compute.optional_number("sharded_step", "us") or 0.0,
        tensor_parameter_s=compute.optional_number("tensor_parameter", "us") or 0.0,
        memory_rates=_optional_rates(memory, "rates"),
        update_bytes_per_s=memory.optional_number("update", "GB/s"),
        update_rates=_optional_rates(memory, "update_rates"),
        blocks=_blocks(top),
    )


def _compute(compute: Fields) -> tuple[dict[str, float], dict[str, SizeTable]]:
    peak_fields = compute.section("peak")
    peaks: dict[str, float] = {}
    for precision in PRECISIONS:
        value = peak_fields.optional_number(precision, "TFLOP/s")
        if value is not None:
            peaks[precision] = value
    if "fp32" not in peaks:
        peak_fields.fail("fp32", "every device computes in fp32; give its peak")
    tables = compute.section("matmul_efficiency")
    fp32 = tables.table("fp32", "cube_edge", "fraction")
    half = tables.table("half", "cube_edge", "fraction") if len(peaks) > 1 else fp32
    efficiency = {precision: fp32 if precision == "fp32" else half for precision in peaks}
    return peaks, efficiency


def _optional_rates(section: Fields, key: str) -> SizeTable | None:
    return section.table(key, "B", "GB/s") if key in section.values else None


def _overlap(compute: Fields) -> float:
    """All of the communication unless the file says less; null stands for none of it, which is no positive
    number."""
    if "overlap" not in compute.values:
        return 1.0
    return compute.optional_number("overlap", "fraction") or 0.0


def _blocks(top: Fields) -> dict[str, MeasuredBlock]:
    section = top.section("blocks", required=False)
    found: dict[str, MeasuredBlock] = {}
    for class_key in section.values:
        block = section.section(class_key)
        found[class_key] = MeasuredBlock(
            class_key=class_key,
            precision=block.text("precision"),
            forward_s=block.number("forward", "us"),
            backward_s=block.number("backward", "us"),
            name=block.text("name"),
            sharded=_sharded(block.section("sharded", required=False)),
            update_s=block.optional_number("update", "us"),
        )
    return found


def _sharded(section: Fields) -> dict[int, Slowdown]:
    found: dict[int, Slowdown] = {}
    for name in section.values:
        if not name.isdigit():
            section.fail(name, f"'{name}' is no tensor degree; name each by its number of ranks")
        factors = section.section(name)
        found[int(name)] = Slowdown(factors.number("forward", "times"), factors.number("backward", "times"))
    return found


def _intra_node(link: Fields) -> IntraNodeLink:
    return IntraNodeLink(
        kind=link.text("kind"),
        bytes_per_s=link.number("bandwidth", "GB/s"),
        ring_bytes_per_s=link.number("ring_bandwidth", "GB/s"),
        latency_s=link.number("latency", "us"),
        curves=_curves(link, CollectiveKind.ALL_REDUCE),
        shared=link.flag("shared"),
        own_curves={kind: _curves(link, kind) for kind in OWN_CURVES if str(kind) in link.values},
        messages=_optional_rates(link, "messages"),
        messages_alone=_optional_rates(link, "messages_alone"),
    )


def _curves(link: Fields, kind: CollectiveKind) -> tuple[BusCurve, ...]:
    return tuple(
        BusCurve(curve.count("group"), curve.own_table("B", "GB/s"), kind) for curve in link.items(str(kind))
    )


def _network(link: Fields) -> NetworkLink:
    return NetworkLink(
        kind=link.text("kind"),
        bytes_per_s=link.number("bandwidth_per_device", "GB/s"),
        efficiency=link.number("efficiency", "fraction"),
        latency_s=link.number("latency", "us"),
    )


def _host(host: Fields) -> HostLink:
    link = HostLink(bytes_per_s=host.number("pcie", "GB/s"), memory_bytes=int(host.number("memory", "GiB")))
    if "memory_bandwidth" not in host.values:
        return link
    return replace(link, memory_bytes_per_s=host.number("memory_bandwidth", "GB/s"))
