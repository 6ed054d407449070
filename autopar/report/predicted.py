"""A prediction as plain data: for programs (``--json``) and as the ``predicted`` section of a plan file."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from autopar.cost.prediction import Prediction, StageMemory
from autopar.units import format_bytes, format_seconds

MEMORY_PURPOSES = tuple(
    field.name.removesuffix("_bytes") for field in fields(StageMemory) if field.name != "host_bytes"
)
"""What memory of the device is held for, in the order in which it is shown."""


def prediction_document(prediction: Prediction) -> dict[str, Any]:
    """Seconds, bytes and fractions under names that say so, for ``--json``."""
    return {
        "step_time_s": prediction.step_time_s,
        "samples_per_s": prediction.samples_per_s,
        "mfu": prediction.mfu,
        "peak_memory_bytes": prediction.peak_memory_bytes,
        "memory_limit_bytes": prediction.memory_limit_bytes,
        "stages": [
            {
                "compute_s": stage.compute_s,
                "comm_s": stage.comm_s,
                "idle_s": stage.idle_s,
                "memory": {
                    **{f"{purpose}_bytes": memory_of(stage.memory, purpose) for purpose in MEMORY_PURPOSES},
                    "total_bytes": stage.memory.total_bytes,
                    "host_bytes": stage.memory.host_bytes,
                },
            }
            for stage in prediction.stages
        ],
    }


def predicted_section(
    prediction: Prediction, status: str, gap: float | None, bound_s: float | None
) -> dict[str, Any]:
    """The same for people, with units in the values; holds nothing that differs from run to run.

    Args:
        prediction: of the plan that the section is written below.
        status: ``optimal`` or ``feasible``, under the cost model.
        gap: how much faster the best plan could be, as a fraction of the step time.
        bound_s: no plan is faster, under the cost model.
    """
    section: dict[str, Any] = {"status": status_text(status, gap)}
    section["step_time"] = format_seconds(prediction.step_time_s)
    if bound_s is not None and gap:
        section["bound"] = format_seconds(bound_s)
    section["samples_per_s"] = _four_digits(prediction.samples_per_s)
    section["mfu"] = format_percent(prediction.mfu)
    section["peak_memory"] = (
        f"{format_bytes(prediction.peak_memory_bytes)} of {format_bytes(prediction.memory_limit_bytes)}"
    )
    if prediction.peak_host_bytes:
        limit = format_bytes(prediction.host_limit_bytes)
        section["host_memory"] = f"{format_bytes(prediction.peak_host_bytes)} of {limit} a device"
    section["stages"] = [
        {
            "compute": format_seconds(stage.compute_s),
            "comm": format_seconds(stage.comm_s),
            "idle": format_seconds(stage.idle_s),
            "memory": format_bytes(stage.memory.total_bytes),
        }
        for stage in prediction.stages
    ]
    return section


def fit_word(prediction: Prediction) -> str:
    """The status of a plan that was costed and not searched for: ``feasible`` or ``infeasible``."""
    return "feasible" if prediction.fits else "infeasible"


def status_text(status: str, gap: float | None) -> str:
    """``optimal``, or ``feasible (at most 3.1% slower than the best)``."""
    return status if not gap else f"{status} (at most {format_percent(gap)} above the bound)"


def _four_digits(number: float) -> float | int:
    return round(number) if number >= 1000 else float(f"{number:.4g}")


def format_percent(fraction: float) -> str:
    """``format_percent(0.4123) == '41.2%'``."""
    return f"{100 * fraction:.1f}%"


def memory_of(memory: StageMemory, purpose: str) -> int:
    """Bytes held for one of ``MEMORY_PURPOSES``."""
    num_bytes: int = getattr(memory, f"{purpose}_bytes")
    return num_bytes
