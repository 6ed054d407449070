"""What parameters cost one rank besides computing: bytes of masters, gradients and optimiser state, and the
update.

Masters, gradients and optimiser state are fp32 in every precision (Micikevicius et al. 2018, arXiv
1710.03740); ZeRO levels 1, 2 and 3 divide the masters and the optimiser state, also the gradients, also the
copy that computes among the ranks of the data axis or of a shard group of it (Rajbhandari et al. 2020, arXiv
1910.02054, section 5, whose optimiser state includes the masters).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from autopar.errors import UsageError, closest_match
from autopar.hardware.device import Device
from autopar.plan.decisions import Precision

MASTER_BYTES = 4
GRADIENT_BYTES = 4


@dataclass(frozen=True, slots=True)
class OptimizerCost:
    """What an optimiser needs per parameter element.

    Attributes:
        state_bytes: kept between steps.
        traffic_bytes: read and written by one update: passes of the multi-tensor implementation in
            torch.optim that is the default on a GPU, at 4 bytes each.
        temporary_bytes: lives during the update.
    """

    state_bytes: int
    traffic_bytes: int
    temporary_bytes: int


# adam(w): decay 2, lerp 3, mul 2, addcmul 3, sqrt 2, div 2, add 2, addcdiv 4 passes; sqrt makes a temporary.
# sgd: add 3; with momentum: mul 2, add 3, add 3.
OPTIMIZERS: Mapping[str, OptimizerCost] = MappingProxyType(
    {
        "adamw": OptimizerCost(8, 80, 4),
        "adam": OptimizerCost(8, 80, 4),
        "sgd": OptimizerCost(0, 12, 0),
        "sgd-momentum": OptimizerCost(4, 32, 0),
    }
)


def optimizer_cost(name: str) -> OptimizerCost:
    """The cost of an optimiser by its name in a plan.

    Raises:
        UsageError: unknown; lists the known ones.
    """
    if name not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
        raise UsageError(f"unknown optimizer '{name}'{closest_match(name, OPTIMIZERS)} (known: {known})")
    return OPTIMIZERS[name]


def compute_bytes(precision: Precision) -> int:
    """Bytes of an element in the compute dtype."""
    return 4 if precision is Precision.FP32 else 2


@dataclass(frozen=True, slots=True)
class ParameterBytes:
    """Bytes of one rank, kept all through a step."""

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """Sum."""
        return self.parameters + self.gradients + self.optimizer


def parameter_bytes(
    trainable: int, frozen: int, zero: int, group: int, precision: Precision, optimizer: str
) -> ParameterBytes:
    """Bytes that one rank keeps for its pieces (after tensor sharding) of parameters.

    Args:
        trainable: elements with a gradient.
        frozen: elements without.
        zero: ZeRO level.
        group: ranks among which ZeRO divides.
    """

    def share(num_elements: int, divided: bool) -> int:
        return -(-num_elements // group) if divided else num_elements

    if group == 1:
        zero = 0  # there is nobody to share with
    held = trainable + frozen
    parameters = MASTER_BYTES * share(held, zero >= 1)
    # Computing needs whole parameters: under ZeRO 3 those of a block or two at a time, otherwise all of them,
    # besides the masters where these are of another dtype or divided.
    if zero < 3 and (precision is not Precision.FP32 or zero >= 1):
        parameters += compute_bytes(precision) * held
    return ParameterBytes(
        parameters=parameters,
        gradients=GRADIENT_BYTES * share(trainable, zero >= 2),
        optimizer=optimizer_cost(optimizer).state_bytes * share(trainable, zero >= 1),
    )


def update_s(
    trainable: int, zero: int, group: int, precision: Precision, optimizer: str, device: Device
) -> float:
    """Seconds of the optimiser's update on the device: memory-bound, plus writing the compute copy."""
    num_elements = -(-trainable // group) if zero >= 1 else trainable
    traffic = optimizer_cost(optimizer).traffic_bytes
    if precision is not Precision.FP32:
        traffic += MASTER_BYTES + compute_bytes(precision)
    return num_elements * traffic / (device.update_bytes_per_s or device.effective_memory_bytes_per_s)
