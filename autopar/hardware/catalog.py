"""The cost models that autopar ships, by name, and the one for the GPU that a machine has."""

from __future__ import annotations

from pathlib import Path

from autopar.errors import UsageError, closest_match
from autopar.hardware.device import Device
from autopar.hardware.read_device import read_device


def cost_models_folder() -> Path:
    """Where the shipped cost models lie: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "cost_models"
    return inside if inside.is_dir() else package.parent / "cost_models"


def device_names() -> tuple[str, ...]:
    """Names of the shipped cost models, sorted."""
    return tuple(sorted(path.stem for path in cost_models_folder().glob("*.yaml")))


def load_device(name: str) -> Device:
    """The device of a name, of a unique prefix of one (``t4``, ``h100``), or of a path to a cost-model file.

    Raises:
        UsageError: no device or several have this prefix, or the file does not exist.
        CostModelError: the file is malformed.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if not Path(name).is_file():
            raise UsageError(f"device '{name}' looks like a file, but there is none; check the path")
        return read_device(name)
    return read_device(cost_models_folder() / f"{resolve_device_name(name)}.yaml")


def resolve_device_name(name: str) -> str:
    """The one shipped name that ``name`` is a prefix of.

    Raises:
        UsageError: none or several; the message lists them.
    """
    names = device_names()
    lowered = name.lower()
    if lowered in names:
        return lowered
    found = [known for known in names if lowered and known.startswith(lowered)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"device '{name}' is ambiguous: it may be {' or '.join(found)}; write more of the name"
        )
    families = [known.partition("-")[0] for known in names]
    hint = closest_match(lowered, [*names, *families])
    raise UsageError(
        f"unknown device '{name}'{hint} (known: {', '.join(names)}; or give a path to a cost-model file)"
    )


def find_local_device(reported_name: str | None) -> Device | None:
    """The cost model of a GPU by the name that its driver reports, e.g. ``NVIDIA H100 80GB HBM3``.

    Args:
        reported_name: of ``torch.cuda.get_device_name()``; None where the machine has no GPU.

    Returns:
        None where no cost model claims the name.
    """
    if not reported_name:
        return None
    for name in device_names():
        device = load_device(name)
        if any(known.lower() == reported_name.strip().lower() for known in device.detected_as):
            return device
    return None
