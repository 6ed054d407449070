"""What moving state and activations to host memory costs, and frees.

* ``optimizer``: the optimiser's state is in pinned host memory. For the update it comes up to the device and
  goes back, block by block (2 x its bytes over PCIe once a step).
* ``parameters`` (needs ZeRO 3): each rank's shard of masters, gradients and optimiser state is in host memory
  and updated there. The shard comes up before every gather, gradients go down after every scatter
  (``cost.synchronisation``).
* ``activations``: what blocks save for the backward pass goes down in the forward pass and comes up again in
  the backward pass, on the stream that computes, so that nothing hides it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autopar.cost.choice import BlockChoice
from autopar.cost.parameter_state import ParameterBytes, optimizer_cost, update_s
from autopar.cost.training import Training


def activations_s(blocks: Sequence[BlockChoice], training: Training) -> float:
    """Seconds that the forward of a micro-batch, and again its backward, spends on moving activations."""
    if "activations" not in training.offload:
        return 0.0
    return training.host_s(sum(block.saved_bytes for block in blocks))


def offloaded_update_s(trainable: int, zero: int, training: Training) -> float:
    """Seconds of the update of so many local elements, wherever it runs, with what it moves."""
    group, optimizer = training.group, training.optimizer
    if "parameters" in training.offload:
        host = training.cluster.device.host
        rate = host.memory_bytes_per_s / training.cluster.devices_per_node
        return -(-trainable // group) * optimizer_cost(optimizer).traffic_bytes / rate
    seconds = update_s(trainable, zero, group, training.precision, optimizer, training.cluster.device)
    if "optimizer" in training.offload:
        held = -(-trainable // group) if zero >= 1 else trainable
        seconds += 2 * training.host_s(held * optimizer_cost(optimizer).state_bytes)
    return seconds


def on_device(state: ParameterBytes, training: Training) -> ParameterBytes:
    """What of the parameters' bytes stays on the device; the others are in host memory."""
    if "parameters" in training.offload:
        return ParameterBytes(0, 0, 0)
    if "optimizer" in training.offload:
        return replace(state, optimizer=0)
    return state
