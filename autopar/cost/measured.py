"""Measured block classes: how much slower or faster than thought their operators are.

A measured block is taken as measured where it runs whole. Where it is sharded, every operator is slower or
faster than thought by the same factor as in the whole block.
"""

from __future__ import annotations

from dataclasses import dataclass

from autopar.capture.model_graph import Block
from autopar.cost.operators import node_seconds
from autopar.hardware.device import Device
from autopar.sharding.gradients import nodes_with_gradient


@dataclass(frozen=True, slots=True)
class Correction:
    """Factors on the time of a block's operators; 1 where the block was not measured."""

    forward: float = 1.0
    backward: float = 1.0


def correction(block: Block, device: Device) -> Correction:
    """Measured time of a block class over the sum of its operators, on one rank."""
    measured = device.blocks.get(block.class_key)
    if measured is None:
        return Correction()
    gradients = nodes_with_gradient(block)
    costs = [node_seconds(n, gradients, device) for n in block.graph.nodes if n.op == "call_function"]
    forward_s, backward_s = sum(c.forward_s for c in costs), sum(c.backward_s for c in costs)
    return Correction(
        measured.forward_s / forward_s if forward_s else 1.0,
        measured.backward_s / backward_s if backward_s else 1.0,
    )
