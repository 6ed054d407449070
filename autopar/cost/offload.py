"""What moving state and activations to host memory costs, and frees.

* ``optimizer``: the parameters that the optimiser changes live in host memory with their gradients and their
  state. Once a step the synchronised gradients go down, the host's cores update, and the values come up.
* ``parameters`` (needs ZeRO 3): each rank's shard of masters, gradients and optimiser state is in host memory
  and updated there. The shard comes up before every gather, gradients go down after every scatter
  (``cost.synchronisation``).
* ``activations``: what blocks save for the backward pass goes down beside the forward pass and comes up again
  beside the backward pass, that of a block while the block after it runs backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autopar.cost.choice import BlockChoice
from autopar.cost.parameter_state import (
    GRADIENT_BYTES,
    MASTER_BYTES,
    ParameterBytes,
    optimizer_cost,
    update_s,
)
from autopar.cost.training import Training


def activations_s(blocks: Sequence[BlockChoice], training: Training) -> tuple[float, float]:
    """Seconds by which moving activations holds up the forward and the backward of a micro-batch."""
    if "activations" not in training.offload:
        return 0.0, 0.0
    moves = [training.host_s(block.saved_bytes) for block in blocks]
    # Copy engines move them beside compute; where the device is a CPU, its cores do.
    beside = 0.0 if training.cluster.device.kind == "cpu" else 1.0
    # Going down, copies queue up behind each other; coming up, one block is asked for ahead of its turn.
    down = max(0.0, sum(moves) - beside * sum(block.forward_s for block in blocks))
    later = [beside * block.backward_s for block in blocks[1:]]
    up = moves[-1] + sum(max(0.0, move - hidden) for move, hidden in zip(moves[:-1], later, strict=True))
    return down, up


def step_update_s(trainable: int, zero: int, training: Training) -> float:
    """Seconds of the update of so many local elements, wherever it runs, with what it moves; of a rank alone
    (``Training.update_speed``).
    """
    device, num_elements = training.cluster.device, share(trainable, zero, training)
    if not has_host_state(training):
        seconds = update_s(trainable, zero, training.group, training.precision, training.optimizer, device)
        return seconds / training.update_speed
    rate = device.host.memory_bytes_per_s / training.cluster.devices_per_node
    if device.kind == "cpu":
        rate = device.update_bytes_per_s or device.effective_memory_bytes_per_s
    seconds = num_elements * optimizer_cost(training.optimizer).traffic_bytes / rate
    return seconds / training.update_speed + moved_for_update_s(trainable, zero, training)


def moved_for_update_s(trainable: int, zero: int, training: Training) -> float:
    """The part of it in which gradients go down to the host and values come up again."""
    if not has_host_state(training) or "parameters" in training.offload:
        return 0.0  # these move with the gathers and scatters
    return training.host_s(share(trainable, zero, training) * (GRADIENT_BYTES + MASTER_BYTES))


def share(num_elements: int, zero: int, training: Training) -> int:
    """Elements that one rank updates."""
    return -(-num_elements // training.group) if zero >= 1 else num_elements


def has_host_state(training: Training) -> bool:
    """Whether the update runs on the host."""
    return "optimizer" in training.offload or "parameters" in training.offload


def host_state_bytes(trainable: int, frozen: int, zero: int, training: Training) -> int:
    """Bytes of one rank's masters, gradients and optimiser state in host memory."""
    if not has_host_state(training):
        return 0
    changed = GRADIENT_BYTES + optimizer_cost(training.optimizer).state_bytes
    return MASTER_BYTES * share(trainable + frozen, zero, training) + changed * share(
        trainable, zero, training
    )


def on_device(state: ParameterBytes, training: Training) -> ParameterBytes:
    """What of the parameters' bytes stays on the device."""
    if "parameters" in training.offload:
        return ParameterBytes(0, 0, 0)
    return replace(state, optimizer=0) if "optimizer" in training.offload else state
