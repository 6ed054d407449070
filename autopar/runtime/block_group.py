"""Consecutive blocks that are gathered and resharded together, and how a stage is cut into such groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn

from autopar.lower.weight_gradients import WeightGradients
from autopar.runtime.block_module import BlockModule
from autopar.runtime.routes import BlockProgram
from autopar.units import MiB

# A collective of less takes about as long as one of nothing: half of the bandwidth of 100 Gbit/s links is
# reached at some MiB, and DistributedDataParallel fills buckets of 25 MiB for the same reason.
_LEAST_BYTES = 16 * MiB
# Of the parameters of a stage: small models, too, are to be held in pieces.
_LARGEST_SHARE = 4


class BlockRun(NamedTuple):
    """What a group is to do with one of its blocks.

    Attributes:
        program: None where the block has nothing to do.
        seed: of its random operators.
        dropped: names of the values that nothing reads after it.
    """

    program: BlockProgram | None
    seed: int
    dropped: tuple[str, ...]


class GroupWork:
    """What a group is to do with a micro-batch, but for the activations.

    No dataclass or tuple: FSDP looks into those, and joins all tensors that it finds in the arguments in one
    node of the autograd graph. The gradient of a weight among them, where it comes by itself, would go on
    through the activations.

    Args:
        batch: entries of the micro-batch by key.
        shared, buffers: of the stage, as a block takes them.
        runs: one per block.
        weight_gradients: where the backward pass leaves them, if it is split.
    """

    __slots__ = ("batch", "buffers", "runs", "shared", "weight_gradients")

    def __init__(
        self,
        batch: Mapping[str, Tensor],
        shared: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        runs: Sequence[BlockRun],
        weight_gradients: WeightGradients | None,
    ) -> None:
        self.batch = batch
        self.shared = shared
        self.buffers = buffers
        self.runs = runs
        self.weight_gradients = weight_gradients


class BlockGroup(nn.Module):
    """Blocks that run one after the other on a micro-batch."""

    def __init__(self, blocks: Sequence[BlockModule]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def members(self) -> tuple[BlockModule, ...]:
        """The blocks in order."""
        return tuple(block for block in self.blocks if isinstance(block, BlockModule))

    @property
    def only_looks_up(self) -> bool:
        """Whether the backward pass of all blocks does without the values of their parameters."""
        return all(block.only_looks_up for block in self.members())

    def forward(self, values: Mapping[str, Tensor], work: GroupWork) -> dict[str, Tensor]:
        """Runs the blocks.

        Args:
            values: activations from before the group that it reads, by global name.
            work: all the rest.

        Returns:
            What the blocks have made that is read after them, by global name.
        """
        made: dict[str, Tensor] = {}
        for block, (program, seed, dropped) in zip(self.members(), work.runs, strict=True):
            if program is None:
                continue
            given = {name: made[name] if name in made else values[name] for name in program.reads}
            given.update({key: work.batch[key] for key in program.batch_reads})
            results = block(given, work.shared, work.buffers, seed, work.weight_gradients, program)
            made.update(zip(program.block.outputs, results, strict=True))
            for name in dropped:
                made.pop(name, None)
        return made


def gathered_together(sizes_bytes: Sequence[int]) -> tuple[range, ...]:
    """Cuts consecutive blocks into groups, each large enough to be worth a collective of its own.

    Args:
        sizes_bytes: of the blocks' parameters.
    """
    least = min(_LEAST_BYTES, sum(sizes_bytes) / _LARGEST_SHARE)
    cuts, filled = [0], 0.0
    for index, size in enumerate(sizes_bytes):
        filled += size
        if filled >= least > 0:
            cuts.append(index + 1)
            filled = 0.0
    if len(cuts) == 1:
        return (range(len(sizes_bytes)),)
    cuts[-1] = len(sizes_bytes)  # what is left over goes with the last
    return tuple(range(a, b) for a, b in pairwise(cuts))
