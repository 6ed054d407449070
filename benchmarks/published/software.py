"""Named variants of the software that ran: what a cost model says of eager PyTorch, changed as a source
states."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from autopar.hardware.device import Device

_FILE = Path(__file__).with_name("software.yaml")


def with_software(device: Device, framework: str) -> Device:
    """The device as seen through the framework of a run."""
    for variant in _variants().values():
        if framework.startswith(tuple(variant["applies_to"])):
            return _changed(device, variant)
    return device


@lru_cache(maxsize=1)
def _variants() -> dict[str, dict[str, Any]]:
    variants: dict[str, dict[str, Any]] = yaml.safe_load(_FILE.read_text())["variants"]
    return variants


def _changed(device: Device, variant: dict[str, Any]) -> Device:
    changes: dict[str, Any] = {}
    if "memory_efficiency" in variant:
        changes["memory_efficiency"] = variant["memory_efficiency"]["value"]
    if "overlap" in variant:
        changes["overlap"] = variant["overlap"]["value"]
    if "dispatch" in variant:
        changes["dispatch_s"] = variant["dispatch"]["value"] * 1e-6
    if "update_speedup" in variant:
        efficiency = changes.get("memory_efficiency", device.memory_efficiency)
        rate = device.update_bytes_per_s or device.memory_bytes_per_s * efficiency
        changes["update_bytes_per_s"] = rate * variant["update_speedup"]["value"]
    if device.name in variant.get("attention_efficiency", {}):
        changes["attention_efficiency"] = variant["attention_efficiency"][device.name]["value"]
    return replace(device, **changes)
