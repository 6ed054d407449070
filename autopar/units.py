"""Reading and writing of bytes, seconds and FLOP rates: base units inside, GiB, ms and TFLOP/s for people."""

from __future__ import annotations

import re

from autopar.errors import UsageError

KB, MB, GB, TB = 10**3, 10**6, 10**9, 10**12
KiB, MiB, GiB, TiB = 2**10, 2**20, 2**30, 2**40

_UNITS = {
    "B": 1,
    "KB": KB,
    "MB": MB,
    "GB": GB,
    "TB": TB,
    "KIB": KiB,
    "MIB": MiB,
    "GIB": GiB,
    "TIB": TiB,
}


def parse_bytes(text: str) -> int:
    """Reads a size such as ``80GiB``, ``512MiB`` or ``16GB``; a number without a unit is none.

    Raises:
        UsageError: the text is not a positive size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    if match is None or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise UsageError(f"'{text}' is not a size; write a number with a unit, e.g. 80GiB, 512MiB or 16GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def exact_bytes(num_bytes: int) -> str:
    """A size in the largest binary unit that leaves no remainder: ``parse_bytes`` of it gives it back."""
    for name, size in (("TiB", TiB), ("GiB", GiB), ("MiB", MiB), ("KiB", KiB)):
        if num_bytes and num_bytes % size == 0:
            return f"{num_bytes // size}{name}"
    return f"{num_bytes}B"


def format_bytes(num_bytes: float) -> str:
    """Bytes for people, in binary units: ``format_bytes(3 * GiB) == '3.00 GiB'``."""
    for name, size in (("TiB", TiB), ("GiB", GiB), ("MiB", MiB), ("KiB", KiB)):
        if abs(num_bytes) >= size:
            return f"{num_bytes / size:.2f} {name}"
    return f"{num_bytes:.0f} B"


def format_enough_bytes(num_bytes: int) -> str:
    """As ``format_bytes``, rounded up: ``parse_bytes`` of it is no less."""
    text = format_bytes(num_bytes)
    if parse_bytes(text) >= num_bytes:
        return text
    number, unit = text.split()
    return f"{float(number) + 0.01:.2f} {unit}"


def format_seconds(seconds: float) -> str:
    """Seconds for people: ``1.23 s``, ``45.6 ms``, ``7.8 µs``."""
    if abs(seconds) >= 1:
        return f"{seconds:.2f} s"
    if abs(seconds) >= 1e-3:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e6:.1f} µs"


def format_flops_per_s(flops_per_s: float) -> str:
    """A FLOP rate for people, in TFLOP/s."""
    return f"{flops_per_s / 1e12:.1f} TFLOP/s"
