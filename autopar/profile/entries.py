"""Entries of a cost-model file: a value with its unit and where it comes from."""

from __future__ import annotations

from typing import Any

from autopar.profile.spread import Spread

MEASURED, BORROWED = "P1", "P2"
"""Names of the two sources of a profile's numbers."""

Document = dict[str, Any]


def seconds(spread: Spread) -> Document:
    """A measured time."""
    return measured(spread.median_s * 1e6, "us", width(spread))


def width(spread: Spread) -> str:
    """The note that says how far repetitions lie apart."""
    return f"10% to 90%: {spread.low_s * 1e6:.4g} to {spread.high_s * 1e6:.4g} us"


def measured(value: float, unit: str, note: str = "") -> Document:
    """A number that was measured here."""
    entry: Document = {"value": rounded(value), "unit": unit, "source": MEASURED}
    return {**entry, "note": note} if note else entry


def borrowed(value: float, unit: str) -> Document:
    """A number of another cost model."""
    return {"value": rounded(value), "unit": unit, "source": BORROWED}


def rounded(value: float) -> float:
    """Four digits: more were not measured. Plain numbers where YAML 1.1 would take 1e-05 for text."""
    return float(f"{value:.4g}")
