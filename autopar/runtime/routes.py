"""What a stage runs on a micro-batch: the programs of its blocks, and what it hands on of their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from autopar.capture.model_graph import Block, InputKind
from autopar.capture.operator_facts import is_random
from autopar.lower.block import lower_block
from autopar.lower.device import to_device
from autopar.lower.late_gradients import without_sums
from autopar.lower.split_backward import split_backward
from autopar.plan.decisions import Recompute
from autopar.runtime.block_reads import batch_reads, mutated_buffers, reads
from autopar.runtime.carried_buffers import carried_buffers
from autopar.sharding.propagation import BlockSharding


@dataclass(frozen=True)
class BlockProgram:
    """What a stage runs for one block.

    Attributes:
        block: with the inputs and outputs by global name.
        module: the lowered graph: placeholders ``axis``, then the block's inputs; returns a tuple.
        has_split_backward: ``weight_gradients`` is another placeholder, after ``axis``.
        recompute: what of the forward pass runs again in the backward pass instead of being kept.
        reads: global names of the activations that it reads.
        batch_reads: entries of the batch that it reads.
        mutated_buffers: names of the buffers that the program changes in place.
        carried_buffers: of these, the ones with which it also computes.
        is_random: it draws random numbers.
    """

    block: Block
    module: fx.GraphModule
    recompute: Recompute
    reads: tuple[str, ...]
    batch_reads: tuple[str, ...]
    mutated_buffers: frozenset[str]
    carried_buffers: frozenset[str]
    is_random: bool
    has_split_backward: bool = False


def only_looks_up(program: BlockProgram) -> bool:
    """Whether all that a block does with its parameters is to look up rows of them, once."""
    if program.recompute is not Recompute.NONE:
        return False
    placeholders = [node for node in program.module.graph.nodes if node.op == "placeholder"]
    inputs = zip(reversed(placeholders), reversed(program.block.inputs), strict=False)  # after the axis
    parameters = [node for node, entry in inputs if entry.kind is InputKind.PARAMETER]
    return all(
        user.target is torch.ops.aten.embedding.default and user.args[0] is node and node not in user.args[1:]
        for node in parameters
        for user in node.users
    )


@dataclass(frozen=True)
class Route:
    """The programs of a stage for one purpose.

    Attributes:
        programs: of the stage's blocks, in order; None where a block has nothing to do.
        outputs: global names of the values to return.
        dropped_after: for each block, the values that nothing reads after it.
    """

    programs: tuple[BlockProgram | None, ...]
    outputs: tuple[str, ...]
    dropped_after: tuple[tuple[str, ...], ...]

    @property
    def reads(self) -> frozenset[str]:
        """Global names of the activations that blocks read, of this stage's own among them."""
        return frozenset(name for program in self.programs if program for name in program.reads)

    @property
    def batch_keys(self) -> frozenset[str]:
        """Entries of the batch that blocks read."""
        return frozenset(key for program in self.programs if program for key in program.batch_reads)


def make_route(programs: Sequence[BlockProgram | None], outputs: tuple[str, ...]) -> Route:
    """A route over ``programs`` that returns ``outputs``."""
    last_reader = {
        name: index for index, program in enumerate(programs) if program is not None for name in program.reads
    }
    dropped: list[list[str]] = [[] for _ in programs]
    for name, index in last_reader.items():
        if name not in outputs:
            dropped[index].append(name)
    return Route(tuple(programs), outputs, tuple(map(tuple, dropped)))


def lowered_program(block: Block, sharding: BlockSharding, device: torch.device) -> fx.GraphModule:
    """One rank's program of a block, for tensors on ``device``."""
    return to_device(lower_block(block, sharding).graph, device)


def block_program(
    block: Block, lowered: fx.GraphModule, recompute: Recompute, late: frozenset[str], is_split: bool
) -> BlockProgram:
    """What a stage runs of a lowered block.

    Args:
        late: names of the parameters whose gradients are left as summands of the tensor ranks.
        is_split: leave the gradients of weights for later.
    """
    names = parameter_placeholders(block)
    graph = without_sums(lowered, {placeholder for placeholder, name in names.items() if name in late})
    if is_split:
        graph = split_backward(graph, names)
    return BlockProgram(
        block=block,
        module=graph,
        recompute=recompute,
        reads=reads(block),
        batch_reads=batch_reads(block),
        mutated_buffers=mutated_buffers(block),
        carried_buffers=carried_buffers([block]),
        is_random=any(is_random(node) for node in block.graph.nodes),
        has_split_backward=is_split,
    )


def parameter_placeholders(block: Block) -> dict[str, str]:
    """Placeholder -> canonical name of the parameter that it stands for."""
    return {x.placeholder: x.source for x in block.inputs if x.kind is InputKind.PARAMETER}
