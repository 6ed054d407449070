"""How wide the terminal is and whether there is one: what tables are set for."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from typing import TextIO

from rich.console import RenderableType

from autopar.report.text import render

_MAX_WIDTH = 140
_PIPE_WIDTH = 120


def rendered(parts: Iterable[RenderableType], stream: TextIO | None = None) -> str:
    """Tables and lines as text for a stream (default: stdout): with colours if it is a terminal."""
    # Verbs run with stdout turned aside, so the real one is asked.
    stream = stream or sys.__stdout__ or sys.stdout
    is_terminal = stream.isatty() and os.environ.get("TERM") != "dumb" and "NO_COLOR" not in os.environ
    return render(parts, is_terminal=is_terminal, width=width_of(stream))


def width_of(stream: TextIO | None = None) -> int:
    """Characters in a line of a stream (default: stdout)."""
    stream = stream or sys.__stdout__ or sys.stdout
    return min(shutil.get_terminal_size().columns, _MAX_WIDTH) if stream.isatty() else _PIPE_WIDTH
