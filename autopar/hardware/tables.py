"""Values that depend on a size, as tables of points; read between them on a logarithmic size axis."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SizeTable:
    """A positive value by size.

    Attributes:
        points: (size, value) pairs, sizes ascending and positive, at least one.
    """

    points: tuple[tuple[float, float], ...]

    def at(self, size: float) -> float:
        """The value at ``size``: linear in log(size) between points, constant beyond them."""
        points = self.points
        if size <= points[0][0]:
            return points[0][1]
        if size >= points[-1][0]:
            return points[-1][1]
        i = bisect_left(points, (size,))
        (x0, y0), (x1, y1) = points[i - 1], points[i]
        return y0 + (y1 - y0) * math.log(size / x0) / math.log(x1 / x0)

    def seconds(self, num_bytes: float) -> float:
        """Of a table of bytes/s: what so many bytes take, and no less than those of the first point."""
        first_bytes, first_rate = self.points[0]
        return max(num_bytes / self.at(num_bytes), first_bytes / first_rate)
