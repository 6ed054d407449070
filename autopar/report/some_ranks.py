"""Which ranks are shown where there are too many for all."""

from __future__ import annotations


def some_ranks(num_ranks: int, most: int) -> tuple[int, ...]:
    """All ranks, or ``most`` of them (at least the first and the last), evenly spread."""
    if num_ranks <= most:
        return tuple(range(num_ranks))
    most = max(2, most)
    return tuple(sorted({round(i * (num_ranks - 1) / (most - 1)) for i in range(most)}))
