"""What a block costs under a sharding, with and without recompute.

Time sums the operators and the collectives of the lowered program; memory is read off its run. Both depend on
the class of the block, its sharding, the micro-batch and the stride of the tensor axis alone, so that a
reading serves all blocks of a class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from autopar.capture.model_graph import Block, InputKind
from autopar.cost.choice import BlockChoice, ParameterShare
from autopar.cost.collectives import node_transfers_s
from autopar.cost.flops import forward_flops
from autopar.cost.measured import correction
from autopar.cost.memory import BlockMemory, block_memory, input_kinds
from autopar.cost.operators import node_seconds, operator_name
from autopar.hardware.cluster import Cluster
from autopar.lower.block import LoweredBlock, lower_block
from autopar.lower.selective import kept_nodes
from autopar.plan.decisions import Recompute
from autopar.sharding.gradients import is_floating
from autopar.sharding.placement import local_shape
from autopar.sharding.propagation import BlockSharding
from autopar.sharding.rules.operator import tensor_arguments

# A collective costs the host about as much as three operators: copies around it, the group's queue, events.
_COLLECTIVE_KERNELS = 3


@dataclass(frozen=True, slots=True)
class BlockReading:
    """Time and memory of a block without recompute, on one rank, for one micro-batch.

    Attributes:
        backward_weight_s: the part of ``backward_compute_s`` that makes gradients of parameters.
        selective_s: of what selective recompute runs again; collectives are not among it.
    """

    forward_compute_s: float
    forward_comm_s: float
    backward_compute_s: float
    backward_comm_s: float
    backward_weight_s: float
    selective_s: float
    model_flops: float
    memory: BlockMemory


@dataclass(frozen=True, slots=True)
class Readings:
    """Readings made so far for one cluster; keyed by everything that they depend on.

    Attributes:
        cluster: whose device and links were charged.
        made: by class, sharding, micro-batch and stride of the tensor axis.
    """

    cluster: Cluster
    made: dict[tuple[str, str, int, int], BlockReading] = field(default_factory=dict)

    def of(
        self,
        block: Block,
        sharding: BlockSharding,
        micro_batch: int,
        lowered: LoweredBlock | None = None,
        tensor_stride: int = 1,
    ) -> BlockReading:
        """The reading of a block; lowers the block if the caller has not."""
        key = (block.class_key, sharding_signature(block, sharding), micro_batch, tensor_stride)
        if key not in self.made:
            lowered = lowered or lower_block(block, sharding)
            self.made[key] = read_block(block, lowered, self.cluster, tensor_stride)
        return self.made[key]


def sharding_signature(block: Block, sharding: BlockSharding) -> str:
    """Text that two shardings of blocks of one class share if they run the same program."""
    placed = [str(sharding.placement_of(item.placeholder)) for item in block.inputs]
    calls = [node.name for node in block.graph.nodes if node.op == "call_function"]
    rules = [f"{sharding.rules[name]} {sharding.rules[name].local or ''}" for name in calls]
    outputs = [str(placement) for placement in sharding.outputs]
    return f"{sharding.degree}|{','.join(placed)}|{';'.join(rules)}|{','.join(outputs)}"


def read_block(block: Block, lowered: LoweredBlock, cluster: Cluster, tensor_stride: int = 1) -> BlockReading:
    """Times and memory of a lowered block on ``cluster``, the ranks of its axis ``tensor_stride`` apart."""
    degree = lowered.sharding.degree
    with_gradient = _with_gradient(lowered, block)
    of_parameters = _of_parameters(lowered, block)
    forward, backward, again = _Pass(), _Pass(), _Pass()
    kept, weight_s = kept_nodes(lowered.graph.graph), 0.0
    for node in lowered.graph.graph.nodes:
        if node.op != "call_function":
            continue
        cost = node_seconds(node, with_gradient, cluster.device)
        forward.add(cost.forward_s, cost.forward_kernels)
        backward.add(cost.backward_s, cost.backward_kernels)
        if node not in kept:
            again.add(cost.forward_s, cost.forward_kernels)
        weight_s += cost.backward_s - _without_weights_s(node, with_gradient, of_parameters, cluster)
        there_s, back_s = node_transfers_s(node, degree, cluster, tensor_stride)
        forward.add_comm(there_s)
        backward.add_comm(back_s)
    for seconds in _accumulations_s(lowered, with_gradient, cluster):
        backward.add(seconds, 1)
    forward_s, backward_s = forward.bounded_s(cluster), backward.bounded_s(cluster)
    again_s = again.bounded_s(cluster)
    if measured := cluster.device.blocks.get(block.class_key):
        factors = correction(block, cluster.device)
        again_s *= factors.forward
        forward_s, backward_s = (
            (measured.forward_s, measured.backward_s)
            if degree == 1
            else (forward_s * factors.forward, backward_s * factors.backward)
        )
    return BlockReading(
        forward_compute_s=forward_s,
        forward_comm_s=forward.comm_s,
        backward_compute_s=backward_s,
        backward_comm_s=backward.comm_s,
        # Where the host is the limit, its time divides as the device's does.
        backward_weight_s=weight_s * backward_s / backward.compute_s if backward.compute_s else 0.0,
        selective_s=again_s,
        model_flops=model_flops(block),
        memory=block_memory(block, lowered),
    )


def model_flops(block: Block) -> float:
    """Forward FLOPs of the whole block, whatever its sharding."""
    total = 0
    for node in block.graph.nodes:
        if node.op == "call_function":
            arguments = (argument.meta["val"] for argument in tensor_arguments(node))
            inputs = tuple(tuple(value.shape) for value in arguments if hasattr(value, "shape"))
            value = node.meta["val"]
            first = value[0] if isinstance(value, tuple | list) and value else value
            if inputs and hasattr(first, "shape"):
                total += forward_flops(operator_name(node.target), inputs, (tuple(first.shape),))
    return float(total)


def block_choice(
    block: Block,
    sharding: BlockSharding,
    recompute: Recompute,
    cluster: Cluster,
    micro_batch: int,
    *,
    input_word: str = "replicate",
    output_word: str = "replicate",
    overrides: Mapping[str, str] | None = None,
    frozen: frozenset[str] = frozenset(),
    lowered: LoweredBlock | None = None,
    readings: Readings | None = None,
    tensor_stride: int = 1,
) -> BlockChoice:
    """One way of running a block, and its cost.

    Full recompute keeps the activations that the block reads, runs its forward (with its collectives) once
    more in the backward pass, and has all that it saves alive there for one micro-batch. Selective recompute
    also keeps what ``lower.selective`` names, and runs only the rest again.

    Args:
        input_word: what the previous block hands over, as plans write it.
        output_word: what this block hands on.
        overrides: rule text by operator key where the sharding differs from propagation.
        frozen: canonical names of parameters without gradient.
        lowered: the block's program under ``sharding``, if the caller has it.
        readings: cache to read from and add to; one per cluster.
        tensor_stride: distance in ranks between neighbours on the tensor axis.
    """
    assert readings is None or readings.cluster is cluster
    reading = (readings or Readings(cluster)).of(block, sharding, micro_batch, lowered, tensor_stride)
    held = _held(reading.memory, recompute)
    again_s, again_comm_s = _again_s(reading, recompute)
    return BlockChoice(
        class_key=block.class_key,
        tensor_degree=sharding.degree,
        micro_batch=micro_batch,
        input_word=input_word,
        output_word=output_word,
        recompute=recompute,
        parameters=parameter_shares(block, sharding, frozen),
        overrides=dict(overrides or {}),
        forward_compute_s=reading.forward_compute_s,
        forward_comm_s=reading.forward_comm_s,
        backward_compute_s=reading.backward_compute_s + again_s,
        backward_comm_s=reading.backward_comm_s + again_comm_s,
        saved_bytes=held[0],
        transient_bytes=held[1],
        output_bytes=reading.memory.output_bytes,
        model_flops=reading.model_flops,
        backward_weight_s=reading.backward_weight_s,
    )


def _again_s(reading: BlockReading, recompute: Recompute) -> tuple[float, float]:
    """Compute and collectives that the backward pass runs again."""
    if recompute is Recompute.FULL:
        return reading.forward_compute_s, reading.forward_comm_s
    return (reading.selective_s if recompute is Recompute.SELECTIVE else 0.0), 0.0


def _held(memory: BlockMemory, recompute: Recompute) -> tuple[int, int]:
    """Bytes from forward to backward, and the most beyond them while the block runs."""
    transient = max(memory.forward_transient_bytes, memory.backward_transient_bytes)
    if recompute is Recompute.FULL:
        return memory.input_bytes, memory.replayed_bytes + transient
    if recompute is Recompute.SELECTIVE:
        return memory.selective_bytes, memory.selective_replayed_bytes + transient
    return memory.saved_bytes, transient


def parameter_shares(
    block: Block, sharding: BlockSharding, frozen: frozenset[str] = frozenset()
) -> tuple[ParameterShare, ...]:
    """One rank's pieces of the block's parameters, in placeholder order."""
    placeholders = {node.name: node for node in block.graph.nodes if node.op == "placeholder"}
    shares = []
    for item in block.inputs:
        if item.kind is not InputKind.PARAMETER:
            continue
        value = placeholders[item.placeholder].meta["val"]
        placement = sharding.parameters[item.placeholder]
        num_elements = 1
        for size in local_shape(tuple(value.shape), placement, sharding.degree):
            num_elements *= size
        shares.append(
            ParameterShare(
                name=item.source,
                placement=str(placement),
                num_elements=num_elements,
                trainable=item.source not in frozen and value.is_floating_point(),
            )
        )
    return tuple(shares)


def _with_gradient(lowered: LoweredBlock, block: Block) -> frozenset[str]:
    """Nodes of a lowered graph whose value requires a gradient."""
    kinds = input_kinds(block, lowered)
    found: set[str] = set()
    for node in lowered.graph.graph.nodes:
        if node.op == "placeholder":
            depends = kinds.get(node.name) in (InputKind.PARAMETER, InputKind.ACTIVATION)
        else:
            depends = not node.meta.get("no_grad") and any(a.name in found for a in node.all_input_nodes)
        if depends and is_floating(node):
            found.add(node.name)
    return frozenset(found)


def _of_parameters(lowered: LoweredBlock, block: Block) -> frozenset[str]:
    """Nodes of a lowered graph that are made of parameters alone."""
    kinds = input_kinds(block, lowered)
    found: set[str] = set()
    for node in lowered.graph.graph.nodes:
        made_of = [argument for argument in node.all_input_nodes if argument.meta.get("val") is not None]
        if kinds.get(node.name) is InputKind.PARAMETER or (made_of and all(a.name in found for a in made_of)):
            found.add(node.name)
    return frozenset(found)


def _without_weights_s(
    node: fx.Node, with_gradient: frozenset[str], of_parameters: frozenset[str], cluster: Cluster
) -> float:
    """Backward time of a node that only passes gradients of activations on."""
    if node.name in of_parameters:
        return 0.0
    if not any(argument.name in of_parameters for argument in node.all_input_nodes):
        return node_seconds(node, with_gradient, cluster.device).backward_s
    return node_seconds(node, with_gradient - of_parameters, cluster.device).backward_s


def _accumulations_s(
    lowered: LoweredBlock, with_gradient: frozenset[str], cluster: Cluster
) -> Iterator[float]:
    """Adding up the gradients of values that several operators read (residual branches): two reads, one"
    " write."""
    device = cluster.device
    for node in lowered.graph.graph.nodes:
        value = node.meta.get("val")
        if node.name not in with_gradient or not isinstance(value, torch.Tensor):
            continue
        for _ in range(sum(user.name in with_gradient for user in node.users) - 1):
            moved = 3 * value.numel() * value.element_size()
            yield device.memory_s(moved) + device.launch_s


@dataclass(slots=True)
class _Pass:
    """Sums over one pass of a block."""

    compute_s: float = 0.0
    comm_s: float = 0.0
    kernels: int = 0

    def add(self, seconds: float, kernels: int) -> None:
        self.compute_s += seconds
        self.kernels += kernels

    def add_comm(self, seconds: float) -> None:
        if seconds:
            self.comm_s += seconds
            self.kernels += _COLLECTIVE_KERNELS

    def bounded_s(self, cluster: Cluster) -> float:
        """Compute time, or what the host needs to dispatch everything where the device would wait for it."""
        return max(self.compute_s, self.kernels * cluster.device.dispatch_s - self.comm_s)
