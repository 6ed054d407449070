"""Reads a cost-model file into a Device. Strict: what is not understood is an error at ``file:line``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from autopar.errors import CostModelError
from autopar.hardware.blocks import MeasuredBlock
from autopar.hardware.device import PRECISIONS, Device
from autopar.hardware.fields import Fields
from autopar.hardware.link import BusCurve, CollectiveKind, HostLink, IntraNodeLink, NetworkLink
from autopar.hardware.tables import SizeTable
from autopar.hardware.yaml_lines import load_with_lines

_KEYS = (
    "version",
    "name",
    "description",
    "kind",
    "detected_as",
    "sources",
    "compute",
    "memory",
    "intra_node",
    "network",
    "host",
    "default_devices_per_node",
    "blocks",
)
# Curves of collectives other than the all-reduce, where they were measured.
_OWN_CURVES = (CollectiveKind.ALL_GATHER, CollectiveKind.REDUCE_SCATTER, CollectiveKind.ALL_TO_ALL)


def read_device(path: str | Path) -> Device:
    """Reads a cost-model file.

    Raises:
        CostModelError: the file is malformed; the message starts with ``path:line: ``.
    """
    document, lines = load_with_lines(path, CostModelError)
    unsourced = Fields.of(str(path), document, lines, None)
    unsourced.only(*_KEYS)
    if unsourced.count("version") != 1:
        unsourced.fail("version", "this autopar reads version 1 of cost models; write 'version: 1'")
    sources = unsourced.section("sources")
    for key in sources.values:
        sources.text(key)
    top = Fields.of(str(path), document, lines, frozenset(sources.values))
    kind = top.text("kind")
    if kind not in ("gpu", "cpu"):
        top.fail("kind", f"kind '{kind}' must be 'gpu' or 'cpu'")
    compute = top.section("compute")
    peaks, efficiency = _compute(compute)
    memory = top.section("memory")
    memory.only("capacity", "framework_reserve", "bandwidth", "efficiency", "rates", "update")
    return Device(
        name=top.text("name"),
        description=top.text("description"),
        kind=kind,
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
        memory_rates=memory.table("rates", "B", "GB/s") if "rates" in memory.values else None,
        update_bytes_per_s=memory.optional_number("update", "GB/s"),
        blocks=_blocks(top),
    )


def _compute(compute: Fields) -> tuple[dict[str, float], dict[str, SizeTable]]:
    compute.only(
        "peak",
        "matmul_efficiency",
        "matmul_overhead",
        "attention_efficiency",
        "launch",
        "dispatch",
        "time_share",
        "overlap",
        "action",
        "step",
    )
    peak_fields = compute.section("peak")
    peak_fields.only(*PRECISIONS)
    peaks: dict[str, float] = {}
    for precision in PRECISIONS:
        if precision not in peak_fields.values:
            peak_fields.fail(precision, f"'{precision}' is missing; write 'value: null' if it is unsupported")
        value = peak_fields.optional_number(precision, "TFLOP/s")
        if value is not None:
            peaks[precision] = value
    if "fp32" not in peaks:
        peak_fields.fail("fp32", "every device computes in fp32; give its peak")
    tables = compute.section("matmul_efficiency")
    tables.only("half", "fp32")
    fp32 = tables.table("fp32", "cube_edge", "fraction")
    half = tables.table("half", "cube_edge", "fraction") if len(peaks) > 1 else fp32
    efficiency = {precision: fp32 if precision == "fp32" else half for precision in peaks}
    return peaks, efficiency


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
        block.only("name", "precision", "forward", "backward")
        precision = block.text("precision")
        if precision not in PRECISIONS:
            block.fail("precision", f"precision '{precision}' must be one of {', '.join(PRECISIONS)}")
        found[class_key] = MeasuredBlock(
            class_key=class_key,
            precision=precision,
            forward_s=block.number("forward", "us"),
            backward_s=block.number("backward", "us"),
            name=block.text("name"),
        )
    return found


def _intra_node(link: Fields) -> IntraNodeLink:
    own = tuple(str(kind) for kind in _OWN_CURVES)
    link.only("kind", "bandwidth", "ring_bandwidth", "latency", "shared", "messages", "all_reduce", *own)
    return IntraNodeLink(
        kind=link.text("kind"),
        bytes_per_s=link.number("bandwidth", "GB/s"),
        ring_bytes_per_s=link.number("ring_bandwidth", "GB/s"),
        latency_s=link.number("latency", "us"),
        curves=_curves(link, CollectiveKind.ALL_REDUCE),
        shared=link.flag("shared"),
        own_curves={kind: _curves(link, kind) for kind in _OWN_CURVES if str(kind) in link.values},
        messages=link.table("messages", "B", "GB/s") if "messages" in link.values else None,
    )


def _curves(link: Fields, kind: CollectiveKind) -> tuple[BusCurve, ...]:
    curves: list[BusCurve] = []
    given = link.values.get(str(kind), [])
    if not isinstance(given, list):
        link.fail(str(kind), f"'intra_node.{kind}' must be a list of curves, one per group size")
    for i, item in enumerate(given):
        curve = Fields.of(link.path, item, link.lines, link.sources, f"{link.key}.{kind}.{i}")
        curve.only("group", "size_unit", "unit", "source", "conf", "note", "points")
        group = curve.count("group")
        if group < 2 or (curves and group <= curves[-1].num_ranks):
            curve.fail("group", f"group {group}: groups are at least 2 and ascend from curve to curve")
        curves.append(BusCurve(group, curve.own_table("B", "GB/s"), kind))
    return tuple(curves)


def _network(link: Fields) -> NetworkLink:
    link.only("kind", "bandwidth_per_device", "efficiency", "latency")
    return NetworkLink(
        kind=link.text("kind"),
        bytes_per_s=link.number("bandwidth_per_device", "GB/s"),
        efficiency=link.number("efficiency", "fraction"),
        latency_s=link.number("latency", "us"),
    )


def _host(host: Fields) -> HostLink:
    host.only("pcie", "memory", "memory_bandwidth")
    link = HostLink(bytes_per_s=host.number("pcie", "GB/s"), memory_bytes=int(host.number("memory", "GiB")))
    if "memory_bandwidth" not in host.values:
        return link
    return replace(link, memory_bytes_per_s=host.number("memory_bandwidth", "GB/s"))
