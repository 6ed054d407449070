"""``autopar devices``: the cost models that come along."""

from __future__ import annotations

import argparse

from autopar.cli.outcome import Outcome, document_text
from autopar.cli.terminal import rendered
from autopar.hardware.catalog import device_names, load_device
from autopar.hardware.device import Device
from autopar.report.text import plain_table
from autopar.units import format_bytes, format_flops_per_s

SUMMARY = "list the devices that --device takes"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the verb."""
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout and nothing else")


def execute(args: argparse.Namespace) -> Outcome:
    """Lists every shipped cost model."""
    devices = [load_device(name) for name in device_names()]
    if args.json:
        document = {"schema": 1, "devices": [_document(device) for device in devices]}
        return Outcome(document_text(document))
    table = plain_table("device", ">memory", ">peak", ">per node", "description")
    table.columns[0].no_wrap = True
    for device in devices:
        precision = device.default_precision
        peak = f"{format_flops_per_s(device.peak(precision))} {precision}"
        table.add_row(
            device.name,
            format_bytes(device.memory_bytes),
            peak,
            str(device.default_devices_per_node),
            device.description,
        )
    return Outcome(rendered([table]))


def _document(device: Device) -> dict[str, object]:
    return {
        "name": device.name,
        "description": device.description,
        "kind": device.kind,
        "memory_bytes": device.memory_bytes,
        "memory_bytes_per_s": device.memory_bytes_per_s,
        "peak_flops_per_s": dict(device.peak_flops_per_s),
        "devices_per_node": device.default_devices_per_node,
    }
