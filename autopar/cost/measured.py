"""Measured block classes: how much slower or faster than thought their operators are.

A measured block is taken as measured where it runs whole. Where it is sharded, every operator is slower or
faster than thought by the same factor as in the whole block.
"""

from __future__ import annotations

from dataclasses import dataclass

from autopar.capture.model_graph import Block, ModelGraph
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


def with_measured_times(
    block: Block, degree: int, device: Device, forward_s: float, backward_s: float, again_s: float
) -> tuple[float, float, float]:
    """Times of a block on a tensor axis of ``degree`` ranks, with what was measured of its class.

    Args:
        forward_s, backward_s: sums over its operators.
        again_s: of those that selective recompute runs again.
    """
    measured = device.blocks.get(block.class_key)
    if measured is None:
        return forward_s, backward_s, again_s
    factors = correction(block, device)
    if degree == 1:
        return measured.forward_s, measured.backward_s, again_s * factors.forward
    return forward_s * factors.forward, backward_s * factors.backward, again_s * factors.forward


def measured_note(graph: ModelGraph, device: Device) -> str:
    """One line that says how many blocks of a model rest on measurements; empty where none does."""
    if not device.blocks:
        return ""
    num_measured = sum(block.class_key in device.blocks for block in graph.blocks)
    if not num_measured:
        return (
            f"the blocks measured in {device.path} are of other models, or of other micro-batches than"
            f" {graph.micro_batch}: block times are sums of operators"
        )
    whole = "all" if num_measured == len(graph.blocks) else str(num_measured)
    return f"times of {whole} of {len(graph.blocks)} blocks were measured ({device.path})"
