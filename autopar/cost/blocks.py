"""What a block costs under a sharding, with and without recompute.

Time sums the operators and the collectives of the lowered program; memory is read off its run. Both depend on
the class of the block, its sharding, the micro-batch and the stride of the tensor axis alone, so that a
reading serves all blocks of a class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import fx

from autopar.capture.model_graph import Block, InputKind, ModelGraph
from autopar.cost.call_facts import CallFacts
from autopar.cost.choice import BlockChoice, ParameterShare
from autopar.cost.effects import Effect
from autopar.cost.flops import forward_flops
from autopar.cost.local_run import LocalRun, LocalValue, Timed
from autopar.cost.measured import OperatorSum, measured_update_weight, with_measured_times
from autopar.cost.operators import operator_name
from autopar.cost.storages import BlockMemory
from autopar.hardware.cluster import Cluster
from autopar.hardware.device import Device
from autopar.lower.block import Transfer
from autopar.plan.decisions import Recompute
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
        forward_host_s: the part of ``forward_compute_s`` in which the device waits for its host.
        backward_host_s: likewise, of ``backward_compute_s``.
    """

    forward_compute_s: float
    forward_comm_s: float
    backward_compute_s: float
    backward_comm_s: float
    backward_weight_s: float
    selective_s: float
    model_flops: float
    memory: BlockMemory
    forward_host_s: float = 0.0
    backward_host_s: float = 0.0


class Readings:
    """Readings made so far for one cluster; keyed by everything that they depend on.

    Attributes:
        cluster: whose device and links were charged.
        made: by class, sharding, micro-batch, stride of the tensor axis and frozen placeholders.
        effects: of calls on storages, observed so far.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.made: dict[tuple[str, str, int, int, frozenset[str]], BlockReading] = {}
        self._facts: dict[tuple[fx.Graph, frozenset[str]], CallFacts] = {}
        self.effects: dict[object, Effect] = {}

    def of(
        self,
        block: Block,
        sharding: BlockSharding,
        micro_batch: int,
        tensor_stride: int = 1,
        frozen: frozenset[str] = frozenset(),
    ) -> BlockReading:
        """The reading of a block, of whose parameters those named ``frozen`` have no gradient."""
        own = _frozen_placeholders(block, frozen)
        key = (block.class_key, sharding_signature(block, sharding), micro_batch, tensor_stride, own)
        if key not in self.made:
            facts = self.facts_of(block, frozen)
            self.made[key] = read_block(block, sharding, self.cluster, tensor_stride, facts)
        return self.made[key]

    def facts_of(self, block: Block, frozen: frozenset[str] = frozenset()) -> CallFacts:
        """Facts about the graph of a block."""
        key = (block.graph, _frozen_placeholders(block, frozen))
        if key not in self._facts:
            self._facts[key] = CallFacts(block, self.effects, key[1])
        return self._facts[key]


def frozen_parameters(graph: ModelGraph) -> frozenset[str]:
    """Canonical names of the parameters without gradient."""
    return frozenset(name for name, spec in graph.parameters.items() if not spec.requires_grad)


def _frozen_placeholders(block: Block, frozen: frozenset[str]) -> frozenset[str]:
    """Placeholders of the parameters that are named."""
    if not frozen:
        return frozen
    return frozenset(
        item.placeholder
        for item in block.inputs
        if item.kind is InputKind.PARAMETER and item.source in frozen
    )


def sharding_signature(block: Block, sharding: BlockSharding) -> str:
    """Text that two shardings of blocks of one class share if they run the same program."""
    placed = [str(sharding.placement_of(item.placeholder)) for item in block.inputs]
    called = [sharding.rules[call.name] for call in block.calls]
    rules = [f"{rule} {rule.local or ''}" for rule in called]
    outputs = [str(placement) for placement in sharding.outputs]
    return f"{sharding.degree}|{','.join(placed)}|{';'.join(rules)}|{','.join(outputs)}"


def read_block(
    block: Block,
    sharding: BlockSharding,
    cluster: Cluster,
    tensor_stride: int = 1,
    facts: CallFacts | None = None,
) -> BlockReading:
    """Times and memory of a block on ``cluster``, the ranks of its axis ``tensor_stride`` apart."""
    run = LocalRun(block, sharding, facts or CallFacts(block, {}), cluster.device)
    run.walk()
    forward, backward, again = _passes(run, cluster.device)
    weight_s = 0.0
    for call in run.calls:
        cost = call.cost
        weight_s += cost.backward_s - call.without_weights_s
        for backwards, one in ((False, forward), (True, backward)):
            transfers = (t for t in call.transfers if t.backward is backwards)
            one.add_comm(
                sum(_sticking_out_s(t, call, sharding.degree, cluster, tensor_stride) for t in transfers)
            )
    forward_s, backward_s, again_s = with_measured_times(
        block,
        sharding.degree,
        cluster.device,
        forward.operators(cluster),
        backward.operators(cluster),
        again.operators(cluster),
    )
    reading_s = _reading_s(block, sharding, cluster.device)
    return BlockReading(
        forward_compute_s=forward_s + reading_s,
        forward_comm_s=forward.comm_s,
        backward_compute_s=backward_s + reading_s,
        backward_comm_s=backward.comm_s,
        # Where the host is the limit, its time divides as the device's does.
        backward_weight_s=weight_s * backward_s / backward.compute_s if backward.compute_s else 0.0,
        selective_s=again_s,
        model_flops=model_flops(block),
        memory=run.ledger.memory(),
        forward_host_s=forward_s * forward.host_share(cluster) + reading_s,
        backward_host_s=backward_s * backward.host_share(cluster) + reading_s,
    )


def _reading_s(block: Block, sharding: BlockSharding, device: Device) -> float:
    """What it takes the host in each pass to take local tensors out of DTensors, or to put gradients back."""
    if sharding.degree == 1:
        return 0.0
    return device.tensor_parameter_s * sum(entry.kind is InputKind.PARAMETER for entry in block.inputs)


def operator_sums(block: Block, sharding: BlockSharding, cluster: Cluster) -> tuple[OperatorSum, OperatorSum]:
    """Operators of both passes of a block under a sharding, as if none had been measured."""
    run = LocalRun(block, sharding, CallFacts(block, {}), cluster.device)
    run.walk()
    forward, backward, _ = _passes(run, cluster.device)
    return forward.operators(cluster), backward.operators(cluster)


def _passes(run: LocalRun, device: Device) -> tuple[_Pass, _Pass, _Pass]:
    """Operators forward, backward, and of what selective recompute runs again."""
    forward, backward, again = _Pass(), _Pass(), _Pass()
    for call in run.calls:
        cost = call.cost
        forward.add(cost.forward_s, cost.forward_kernels, call.is_divided)
        backward.add(cost.backward_s, cost.backward_kernels, call.is_divided)
        if not call.is_kept:
            again.add(cost.forward_s, cost.forward_kernels, call.is_divided)
    for seconds in _accumulations_s(run.made, device):
        backward.add(seconds, 1, False)
    return forward, backward, again


def _sticking_out_s(transfer: Transfer, call: Timed, degree: int, cluster: Cluster, stride: int) -> float:
    """Seconds of one collective over each group of ``degree`` ranks that lie ``stride`` apart, as far as
    compute waits for it: for all of it, unless it gathers again beside a product.
    """
    seconds = cluster.collective_s(transfer.kind, transfer.num_bytes, degree, stride)
    hidden_s = cluster.device.overlap * min(seconds, call.beside_s) if transfer.again else 0.0
    return seconds - hidden_s


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
        readings: cache to read from and add to; one per cluster.
        tensor_stride: distance in ranks between neighbours on the tensor axis.
    """
    assert readings is None or readings.cluster is cluster
    reading = (readings or Readings(cluster)).of(block, sharding, micro_batch, tensor_stride, frozen)
    held = _held(reading.memory, recompute)
    shares = parameter_shares(block, sharding, frozen)
    again_s, again_comm_s = _again_s(reading, recompute)
    return BlockChoice(
        class_key=block.class_key,
        tensor_degree=sharding.degree,
        micro_batch=micro_batch,
        input_word=input_word,
        output_word=output_word,
        recompute=recompute,
        parameters=shares,
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
        recompute_s=again_s,
        recompute_comm_s=again_comm_s,
        forward_host_s=reading.forward_host_s,
        backward_host_s=reading.backward_host_s,
        update_weight=_update_weight(block, shares, frozen, cluster.device),
    )


def _update_weight(
    block: Block, shares: Iterable[ParameterShare], frozen: frozenset[str], device: Device
) -> float:
    """Of all elements with a gradient, as they are before ZeRO divides them: as measured where the class
    was, else by their sizes.
    """
    measured = measured_update_weight(block, frozen, device)
    if measured is not None:
        return measured
    sizes = [share.num_elements for share in shares if share.trainable]
    weighed = sum(size * device.update_weight(size) for size in sizes)
    return weighed / sum(sizes) if weighed else 1.0


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


def _accumulations_s(values: Iterable[LocalValue], device: Device) -> Iterator[float]:
    """Adding up the gradients of values that several operators read (residual branches): two reads, one
    write.
    """
    for value in values:
        if value.has_gradient and not value.is_tuple:
            for _ in range(value.num_readers - 1):
                yield device.memory_s(3 * value.num_bytes) + device.launch_s


@dataclass(slots=True)
class _Pass:
    """Sums over one pass of a block."""

    compute_s: float = 0.0
    comm_s: float = 0.0
    kernels: int = 0
    divided_s: float = 0.0

    def add(self, seconds: float, kernels: int, is_divided: bool) -> None:
        self.compute_s += seconds
        self.kernels += kernels
        if is_divided:
            self.divided_s += seconds

    def add_comm(self, seconds: float) -> None:
        if seconds:
            self.comm_s += seconds
            self.kernels += _COLLECTIVE_KERNELS

    def bounded_s(self, cluster: Cluster) -> float:
        """Compute time, or what the host needs to dispatch everything where the device would wait for it."""
        return max(self.compute_s, self.kernels * cluster.device.dispatch_s - self.comm_s)

    def operators(self, cluster: Cluster) -> OperatorSum:
        """That time, and which part of it is divided."""
        divided = self.divided_s / self.compute_s if self.compute_s else 0.0
        return OperatorSum(self.bounded_s(cluster), divided)

    def host_share(self, cluster: Cluster) -> float:
        """Which part of that time the device waits for its host."""
        bounded_s = self.bounded_s(cluster)
        return 1 - self.compute_s / bounded_s if bounded_s else 0.0
