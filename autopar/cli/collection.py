"""How often Python looks for cycles among objects while a model is captured and planned."""

from __future__ import annotations

import atexit
import gc

_ALLOCATIONS_BETWEEN_COLLECTIONS = 5_000_000


def collect_seldom() -> None:
    """Capturing and planning fill memory with graphs that live to the end of the command: looking through
    them for cycles again and again takes a sixth of its time, and another half a second at its end."""
    gc.set_threshold(_ALLOCATIONS_BETWEEN_COLLECTIONS)
    atexit.register(gc.freeze)
