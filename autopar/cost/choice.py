"""What one block costs under one way of running it: the coin in which cost, solve and planner deal. No torch.

All numbers are for one rank and one micro-batch, at a given tensor degree and micro-batch size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autopar.cost.passes import Passes
from autopar.plan.decisions import Recompute


@dataclass(frozen=True, slots=True)
class ParameterShare:
    """One rank's piece of one parameter after sharding on the tensor axis (before ZeRO).

    Attributes:
        name: canonical parameter name (of the block class's first block; see ``BlockChoice``).
        placement: as written in a plan, e.g. ``shard(0, 3)``.
        num_elements: of the local piece.
        trainable: whether it has a gradient and optimiser state.
    """

    name: str
    placement: str
    num_elements: int
    trainable: bool


@dataclass(frozen=True, slots=True)
class BlockChoice(Passes):
    """One way of running every block of a class: boundary and parameter placements, recompute; and its cost.

    Attributes:
        class_key: the block class (``Block.class_key``).
        tensor_degree: size of the tensor axis.
        micro_batch: samples per forward.
        input_word: what the chain's previous block hands over: ``replicate``, ``sequence`` or ``batch``.
        output_word: what this block hands to the next.
        recompute: ``none``, ``selective`` or ``full``.
        parameters: one share per parameter placeholder of the class's first block, in placeholder order;
            another block of the class has the same shares under its own names, position by position.
        overrides: operator key -> rule text wherever the choice differs from the deterministic propagation.
        forward_compute_s: time of the operators of the forward pass.
        forward_comm_s: exposed collectives on the tensor axis in the forward pass.
        backward_compute_s: backward pass, with the recomputed forward where ``recompute`` is full.
        backward_comm_s: likewise, collectives.
        saved_bytes: kept from forward to backward of the same micro-batch (parameters not counted).
        transient_bytes: most that lives inside the block during forward or backward beyond what is saved,
            boundary gradients and, under full recompute, the block's own saved activations included.
        output_bytes: local bytes of what it hands to the next block (p2p volume where a stage ends here).
        model_flops: forward FLOPs of the whole (unsharded) block, for MFU.
        backward_weight_s: the part of ``backward_compute_s`` that zero-bubble schedules postpone: the
            products that make the gradients of weights.
        recompute_s: the part of ``backward_compute_s`` that runs the forward pass again.
        recompute_comm_s: likewise, of ``backward_comm_s``.
        forward_host_s: the part of ``forward_compute_s`` in which the device waits for its host to dispatch.
        backward_host_s: likewise, of ``backward_compute_s`` without what is recomputed.
        update_weight: how many times as long as at the device's usual rate the update of an element takes
            (``Device.update_weight``), on average.
        trainable_elements: of all parameters that have a gradient.
        frozen_elements: of the others.
    """

    class_key: str
    tensor_degree: int
    micro_batch: int
    input_word: str
    output_word: str
    recompute: Recompute
    parameters: tuple[ParameterShare, ...]
    overrides: Mapping[str, str]
    forward_compute_s: float
    forward_comm_s: float
    backward_compute_s: float
    backward_comm_s: float
    saved_bytes: int
    transient_bytes: int
    output_bytes: int
    model_flops: float
    backward_weight_s: float = 0.0
    recompute_s: float = 0.0
    recompute_comm_s: float = 0.0
    forward_host_s: float = 0.0
    backward_host_s: float = 0.0
    update_weight: float = 1.0
    # Asked for again and again, so not summed anew each time.
    trainable_elements: int = field(init=False, compare=False)
    frozen_elements: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        for name, is_trainable in (("trainable_elements", True), ("frozen_elements", False)):
            elements = sum(p.num_elements for p in self.parameters if p.trainable is is_trainable)
            object.__setattr__(self, name, elements)
