"""How the groups of an axis lie over nodes: integers only, for any degrees, strides and node sizes.

The groups of ``size`` ranks ``stride`` apart start at every ``outer * size * stride + inner``, with ``inner``
below ``stride``. Where degrees and node sizes do not divide each other, groups of one axis lie differently:
what counts is the one that crosses nodes worst.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Spread:
    """How the worst of the groups of an axis lies over nodes.

    Attributes:
        num_nodes: nodes that it touches.
        fewest: its ranks on the node that has the fewest of them: as many network cards carry what it sends
            over that node's border.
        most: its ranks on the node that has the most.
    """

    num_nodes: int
    fewest: int
    most: int


@lru_cache(maxsize=4096)
def spread(devices_per_node: int, num_devices: int, size: int, stride: int) -> Spread:
    """How the worst group of ``size`` ranks ``stride`` apart lies; ranks fill nodes in order."""
    span = size * stride
    if stride % devices_per_node == 0:
        return Spread(size, 1, 1)
    if devices_per_node % span == 0:
        return Spread(1, size, size)
    if devices_per_node % stride == 0 and span % devices_per_node == 0:
        per_node = devices_per_node // stride
        return Spread(size // per_node, per_node, per_node)
    found = []
    for start in _starts(devices_per_node, num_devices, size, stride):
        nodes = Counter((start + i * stride) // devices_per_node for i in range(size))
        found.append(Spread(len(nodes), min(nodes.values()), max(nodes.values())))
    return min(found, key=lambda s: (s.fewest if s.num_nodes > 1 else size + 1, -s.num_nodes, s.most))


@lru_cache(maxsize=65536)
def crosses_nodes(
    devices_per_node: int, num_devices: int, size: int, stride: int, first: int, second: int
) -> bool:
    """Whether positions ``first`` < ``second`` of an axis lie on different nodes in any of its groups."""
    if (second - first) * stride >= devices_per_node:
        return True
    return any(
        (start + first * stride) // devices_per_node != (start + second * stride) // devices_per_node
        for start in _starts(devices_per_node, num_devices, size, stride)
    )


@lru_cache(maxsize=4096)
def _starts(devices_per_node: int, num_devices: int, size: int, stride: int) -> tuple[int, ...]:
    """Where groups start, within their first node; a group that starts alike on another node lies alike."""
    span = size * stride
    outers = range(max(1, min(num_devices // span, devices_per_node)))
    inners = range(min(stride, devices_per_node))
    return tuple(sorted({(outer * span + inner) % devices_per_node for outer in outers for inner in inners}))
