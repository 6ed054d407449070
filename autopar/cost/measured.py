"""Measured block classes: how much slower or faster than thought their operators are.

A measured block is taken as measured where it runs whole. Where it is sharded, operators that every rank runs
whole are slower or faster than thought by the same factor as in the whole block, and operators that are
divided by the factor that was measured of a sharding of that degree: small pieces of a product, or of a
convolution, are not run as quickly as large ones. Where none was measured, by the factor of the whole block.
"""

from __future__ import annotations

from dataclasses import dataclass

from autopar.capture.model_graph import Block, InputKind, ModelGraph
from autopar.cost.operators import node_seconds
from autopar.cost.parameter_state import optimizer_cost
from autopar.hardware.blocks import Slowdown
from autopar.hardware.device import Device
from autopar.sharding.gradients import nodes_with_gradient

# Further apart than this, the factors of divided and of whole operators are an error of measurement: where
# little of the block is divided, that of a small difference.
_MOST_OFF = 4.0


@dataclass(frozen=True, slots=True)
class Correction:
    """Factors on the time of a block's operators; 1 where the block was not measured.

    Attributes:
        whole: of operators that every rank runs whole.
        divided: of operators that are divided among the ranks.
    """

    whole: Slowdown
    divided: Slowdown


@dataclass(frozen=True, slots=True)
class OperatorSum:
    """Operators of one pass of a block.

    Attributes:
        seconds: of all of them.
        divided: the part of it that ranks have divided among them, a fraction.
    """

    seconds: float
    divided: float = 0.0

    def corrected_s(self, whole: float, divided: float) -> float:
        """Seconds with factors on what is whole and on what is divided."""
        return self.seconds * (whole * (1 - self.divided) + divided * self.divided)


def correction(block: Block, device: Device, degree: int = 1) -> Correction:
    """Measured time of a block class over the sum of its operators, on each of ``degree`` ranks."""
    measured = device.blocks.get(block.class_key)
    if measured is None:
        return Correction(Slowdown(), Slowdown())
    gradients = nodes_with_gradient(block)
    costs = [node_seconds(n, gradients, device) for n in block.graph.nodes if n.op == "call_function"]
    forward_s, backward_s = sum(c.forward_s for c in costs), sum(c.backward_s for c in costs)
    whole = Slowdown(
        measured.forward_s / forward_s if forward_s else 1.0,
        measured.backward_s / backward_s if backward_s else 1.0,
    )
    return Correction(whole, measured.sharded.get(degree, whole))


def with_measured_times(
    block: Block,
    degree: int,
    device: Device,
    forward: OperatorSum,
    backward: OperatorSum,
    again: OperatorSum,
) -> tuple[float, float, float]:
    """Seconds of a block on a tensor axis of ``degree`` ranks, with what was measured of its class.

    Args:
        again: what selective recompute runs again.
    """
    measured = device.blocks.get(block.class_key)
    if measured is None:
        return forward.seconds, backward.seconds, again.seconds
    factors = correction(block, device, degree)
    whole, divided = factors.whole, factors.divided
    again_s = again.corrected_s(whole.forward, divided.forward)
    if degree == 1:
        return measured.forward_s, measured.backward_s, again_s
    return (
        forward.corrected_s(whole.forward, divided.forward),
        backward.corrected_s(whole.backward, divided.backward),
        again_s,
    )


def measured_update_weight(block: Block, frozen: frozenset[str], device: Device) -> float | None:
    """How many times as long as at the device's usual rate the update of a measured block takes; None where
    that was not measured.

    Args:
        frozen: canonical names of parameters without gradient.
    """
    measured = device.blocks.get(block.class_key)
    if measured is None or measured.update_s is None or device.update_bytes_per_s is None:
        return None
    trained = {
        entry.placeholder
        for entry in block.inputs
        if entry.kind is InputKind.PARAMETER and entry.source not in frozen
    }
    values = (node.meta["val"] for node in block.graph.nodes if node.name in trained)
    num_elements = sum(value.numel() for value in values if value.is_floating_point())
    usual_s = num_elements * optimizer_cost("adamw").traffic_bytes / device.update_bytes_per_s
    return measured.update_s / usual_s if usual_s else None


def slowdown(
    measured_s: tuple[float, float], forward: OperatorSum, backward: OperatorSum, whole: Slowdown
) -> Slowdown:
    """The factors on divided operators that explain the measured passes of a sharded block.

    Args:
        measured_s: seconds forward and backward.
        whole: of operators that are not divided.
    """
    return Slowdown(
        _factor(measured_s[0], forward, whole.forward), _factor(measured_s[1], backward, whole.backward)
    )


def _factor(measured_s: float, thought: OperatorSum, whole: float) -> float:
    divided_s = thought.seconds * thought.divided
    if divided_s == 0:
        return whole
    found = (measured_s - (thought.seconds - divided_s) * whole) / divided_s
    # Less than the whole block's is an error of measurement, too: dividing makes no operator quicker than
    # thought, and other shardings of this degree, with other collectives, would look too quick.
    return max(whole, min(whole * _MOST_OFF, found))


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
