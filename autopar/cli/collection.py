"""How often Python looks for cycles among objects while a model is captured and planned."""

from __future__ import annotations

import gc

_ALLOCATIONS_BETWEEN_COLLECTIONS = 200_000


def collect_seldom() -> None:
    """Capturing and planning fill memory with graphs that live to the end of the command: looking through
    them for cycles again and again takes a sixth of its time."""
    gc.set_threshold(_ALLOCATIONS_BETWEEN_COLLECTIONS)
